#include "dispatch.h"

#include <cstdio>
#include <cstring>

#include "amx.h"

namespace mb::cpu {

#define MB_DECLARE(target)      \
  namespace target {            \
  const KernelEntry* kernels(); \
  }
MB_DECLARE(scalar)
#if defined(__x86_64__) || defined(_M_X64)
MB_DECLARE(avx2)
MB_DECLARE(avx512)
MB_DECLARE(amx)
#elif defined(__aarch64__)
MB_DECLARE(neon)
#endif
#undef MB_DECLARE

namespace {

struct Target {
  const char* name;
  bool (*supported)();
  const KernelEntry* (*kernels)();
};

bool always() { return true; }

// __builtin_cpu_supports also asks whether the operating system saves the wider registers.
#if defined(__x86_64__) || defined(_M_X64)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
bool has_amx() { return has_avx512() && amx_usable(); }
// From the slowest to the fastest.
constexpr Target kTargets[] = {{"scalar", always, scalar::kernels},
                               {"avx2", has_avx2, avx2::kernels},
                               {"avx512", has_avx512, avx512::kernels},
                               {"amx", has_amx, amx::kernels}};
#elif defined(__aarch64__)
constexpr Target kTargets[] = {{"scalar", always, scalar::kernels}, {"neon", always, neon::kernels}};
#else
constexpr Target kTargets[] = {{"scalar", always, scalar::kernels}};
#endif
constexpr int kCount = static_cast<int>(sizeof kTargets / sizeof kTargets[0]);

void append(char* text, size_t capacity, const char* word) {
  const size_t used = std::strlen(text);
  std::snprintf(text + used, capacity - used, "%s%s", used ? " " : "", word);
}

struct Features {
  char text[200] = "";
  Features() {
#if defined(__x86_64__) || defined(_M_X64)
#define MB_FEATURE(name) \
  if (__builtin_cpu_supports(name)) append(text, sizeof text, name)
    MB_FEATURE("avx");
    MB_FEATURE("f16c");
    MB_FEATURE("fma");
    MB_FEATURE("avx2");
    MB_FEATURE("avx512f");
    MB_FEATURE("avx512bw");
    MB_FEATURE("avx512dq");
    MB_FEATURE("avx512vl");
    MB_FEATURE("avx512vnni");
    MB_FEATURE("avx512bf16");
#undef MB_FEATURE
#elif defined(__aarch64__)
    append(text, sizeof text, "neon");
#endif
  }
};

}  // namespace

int target_count() { return kCount; }
const char* target_name(int i) { return kTargets[i].name; }
bool target_supported(int i) { return kTargets[i].supported(); }
const KernelEntry* target_kernels(int i) { return kTargets[i].kernels(); }

const KernelEntry* select(const char* forced, const char** chosen, Status* status) {
  char names[100] = "";
  int picked = -1;
  for (int i = 0; i < kCount; i++) {
    if (!kTargets[i].supported()) continue;
    append(names, sizeof names, kTargets[i].name);
    if (!forced || std::strcmp(forced, kTargets[i].name) == 0) picked = i;
  }
  if (picked < 0) {
    *status = fail(Code::unsupported, "cpu: expected target to be one of: %s, got '%s'.", names, forced);
    return nullptr;
  }
  *chosen = kTargets[picked].name;
  *status = Status{};
  return kTargets[picked].kernels();
}

const char* features() {
  static const Features found;
  return found.text;
}

}  // namespace mb::cpu
