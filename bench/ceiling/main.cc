// What this machine can do at best: memory reads, dot products and barriers on 1 and 2 threads, printed as one JSON
// object. Every fraction of a ceiling in the bench refers to these figures. Units: 1 GB = 1e9 bytes, one multiply-add =
// 2 operations. Instruction sets are compiled always and chosen at run time; a figure the CPU cannot give is null.
#include <cpuid.h>
#include <immintrin.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Cpu {
  bool avx2 = false, avx512 = false, vnni = false, bf16 = false, amx = false;
};

Cpu detect() {
  Cpu cpu;
  __builtin_cpu_init();
  cpu.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  cpu.avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  cpu.vnni = cpu.avx512 && __builtin_cpu_supports("avx512vnni");
  cpu.bf16 = cpu.avx512 && __builtin_cpu_supports("avx512bf16");
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
    const bool listed = (edx & (1u << 22)) && (edx & (1u << 24)) && (edx & (1u << 25));  // amx-bf16, amx-tile, amx-int8
    // Tile registers must be asked for: ARCH_REQ_XCOMP_PERM, feature 18 (tile data). The kernel refuses when it lacks
    // them.
    cpu.amx = listed && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  }
  return cpu;
}

// The loops below are written in assembly, so that no compiler can spill an accumulator or drop work whose result is
// unused. Each instruction of a loop has its own accumulator, so latency never counts, throughput alone.
#define MB_XMM_0_15                                                                                                   \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", \
      "xmm14", "xmm15"
#define MB_XMM_16_31                                                                                                   \
  "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", \
      "xmm29", "xmm30", "xmm31"

// ---- reads of [data, data + bytes), bytes a positive multiple of 1 KiB

__attribute__((target("avx512f"))) void read_avx512(const char* data, int64_t bytes) {
  __asm__ volatile(
      "1:\n"
      ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
      "vpxord \\i*64(%0), %%zmm\\i, %%zmm\\i\n"
      ".endr\n"
      "add $1024, %0\n"
      "sub $1024, %1\n"
      "jnz 1b\n"
      : "+r"(data), "+r"(bytes)
      :
      : MB_XMM_0_15, "cc", "memory");
}

__attribute__((target("avx2"))) void read_avx2(const char* data, int64_t bytes) {
  __asm__ volatile(
      "1:\n"
      ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
      "vpxor \\i*32(%0), %%ymm\\i, %%ymm\\i\n"
      ".endr\n"
      "add $512, %0\n"
      "sub $512, %1\n"
      "jnz 1b\n"
      : "+r"(data), "+r"(bytes)
      :
      : MB_XMM_0_15, "cc", "memory");
}

using Read = void (*)(const char*, int64_t);

// ---- arithmetic: `rounds` times one instruction for each accumulator

constexpr int kAccumulators = 24;

#define MB_ZMM_LOOP(instruction)                                                           \
  __asm__ volatile(                                                                        \
      ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,30,31\n"       \
      "vpxord %%zmm\\i, %%zmm\\i, %%zmm\\i\n"                                              \
      ".endr\n"                                                                            \
      "1:\n"                                                                               \
      ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23\n" instruction \
      " %%zmm30, %%zmm31, %%zmm\\i\n"                                                      \
      ".endr\n"                                                                            \
      "dec %0\n"                                                                           \
      "jnz 1b\n"                                                                           \
      : "+r"(rounds)                                                                       \
      :                                                                                    \
      : MB_XMM_0_15, MB_XMM_16_31, "cc")

__attribute__((target("avx512f"))) void fma_avx512(int64_t rounds) { MB_ZMM_LOOP("vfmadd231ps"); }
__attribute__((target("avx512f"))) void bf16_avx512(int64_t rounds) { MB_ZMM_LOOP("vdpbf16ps"); }
__attribute__((target("avx512f"))) void int8_avx512(int64_t rounds) { MB_ZMM_LOOP("vpdpbusd"); }

__attribute__((target("avx2,fma"))) void fma_avx2(int64_t rounds) {
  __asm__ volatile(
      "vzeroall\n"
      "1:\n"
      ".irp i,0,1,2,3,4,5,6,7,8,9,10,11\n"
      "vfmadd231ps %%ymm14, %%ymm15, %%ymm\\i\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b\n"
      : "+r"(rounds)
      :
      : MB_XMM_0_15, "cc");
}

// Tiles of 16 rows x 64 bytes: 2 x 2 blocking, four accumulators from four operands, as a matrix product would use
// them.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

__attribute__((target("amx-tile"))) void tiles_begin(const TileConfig& config, const char* operand) {
  // Not _tile_loadconfig: GCC's claims to read only 8 bytes, so the other stores of the configuration may vanish.
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, operand, 64);
  _tile_loadd(5, operand, 64);
  _tile_loadd(6, operand, 64);
  _tile_loadd(7, operand, 64);
}

__attribute__((target("amx-tile,amx-bf16"))) void bf16_amx(int64_t rounds) {
  alignas(64) static const char operand[1024] = {};
  tiles_begin(TileConfig{}, operand);
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}

__attribute__((target("amx-tile,amx-int8"))) void int8_amx(int64_t rounds) {
  alignas(64) static const char operand[1024] = {};
  tiles_begin(TileConfig{}, operand);
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
}

using Arithmetic = void (*)(int64_t);

// ---- running on several threads

// All threads meet; spins, and yields after a while in case another program holds the core.
class Meeting {
 public:
  explicit Meeting(int size) : size_(size) {}
  void wait() {
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins < 1 << 14) {
        _mm_pause();
      } else {
        sched_yield();
      }
    }
  }

 private:
  const int size_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

// The shortest time, in seconds, in which `threads` threads all finish one call of `once(thread)`: other programs only
// ever make a run slower, so the best of many short runs is the machine's own figure.
template <class Once>
double best_seconds(int threads, double budget, const Once& once) {
  Meeting meeting(threads);
  std::atomic<bool> over{false};
  double best = 1e30;
  auto work = [&](int thread) {
    const auto begin = Clock::now();
    for (bool warm = false;; warm = true) {
      meeting.wait();
      const auto start = Clock::now();
      once(thread);
      meeting.wait();
      if (thread == 0) {
        if (warm) best = std::min(best, seconds_since(start));
        over.store(seconds_since(begin) > budget && warm, std::memory_order_relaxed);
      }
      meeting.wait();
      if (over.load(std::memory_order_relaxed)) return;
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(work, t);
  work(0);
  for (auto& other : others) other.join();
  return best;
}

constexpr double kBudget = 0.4;  // seconds a measurement

// GB/s of reading `bytes` again and again, each thread its own memory. A run reads about kRunBytes: several passes over
// a cache level, or the next part of what is larger, so that runs are short enough to fall between those of other
// programs.
double read_rate(Read read, int threads, const char* memory, int64_t stride, int64_t bytes) {
  constexpr int64_t kRunBytes = 32 << 20;
  const int64_t passes = std::max<int64_t>(1, kRunBytes / bytes);
  const int64_t part = std::min(bytes, kRunBytes);
  struct alignas(64) Position {
    int64_t at = 0;
  };
  std::vector<Position> positions(static_cast<size_t>(threads));
  const double seconds = best_seconds(threads, kBudget, [&](int thread) {
    int64_t& at = positions[static_cast<size_t>(thread)].at;
    for (int64_t p = 0; p < passes; ++p) read(memory + thread * stride + at, part);
    at = at + 2 * part <= bytes ? at + part : 0;
  });
  return static_cast<double>(part) * static_cast<double>(passes) * threads / seconds / 1e9;
}

// Giga-operations a second; `per_round` operations in one round of `arithmetic`.
double arithmetic_rate(Arithmetic arithmetic, int threads, double per_round) {
  const int64_t rounds = 50000;
  const double seconds = best_seconds(threads, kBudget, [&](int) { arithmetic(rounds); });
  return per_round * static_cast<double>(rounds) * threads / seconds / 1e9;
}

// Nanoseconds of one barrier between 2 threads; the best of short runs.
double barrier_ns() {
  Meeting meeting(2);
  const int rounds = 5000;
  const double seconds = best_seconds(2, kBudget, [&](int) {
    for (int r = 0; r < rounds; ++r) meeting.wait();
  });
  return seconds / rounds * 1e9;
}

int64_t cache_bytes(int name, int64_t fallback) {
  const int64_t size = sysconf(name);
  return size > 0 ? size : fallback;
}

std::string cpu_name() {
  unsigned words[13] = {};
  for (unsigned leaf = 0; leaf < 3; ++leaf) {
    unsigned* w = words + leaf * 4;
    __get_cpuid(0x80000002 + leaf, w, w + 1, w + 2, w + 3);
  }
  std::string name(reinterpret_cast<const char*>(words));
  name.erase(0, name.find_first_not_of(' ') == std::string::npos ? name.size() : name.find_first_not_of(' '));
  return name;
}

struct Figure {
  const char* name;
  double value[2];  // 1 and 2 threads; negative = not measured
};

void print_value(double value) {
  if (value < 0) {
    printf("null");
  } else {
    printf("%.1f", value);
  }
}

}  // namespace

int main() {
  const Cpu cpu = detect();
  if (!cpu.avx2) {
    fprintf(stderr,
            "mb_ceiling: expected the CPU to have AVX2 and FMA, got one without. Older CPUs are not measured.\n");
    return 1;
  }
  const int max_threads = std::min<int>(2, std::max(1u, std::thread::hardware_concurrency()));
  const int64_t l1 = cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 << 10);
  const int64_t l2 = cache_bytes(_SC_LEVEL2_CACHE_SIZE, 1 << 20);
  const int64_t l3 = cache_bytes(_SC_LEVEL3_CACHE_SIZE, 32 << 20);
  // Three times the last cache in all, so that what is read was evicted since; a virtual machine may name a cache it
  // shares with strangers, so no more than 384 MiB a thread.
  const int64_t dram = std::clamp<int64_t>(3 * l3 / 2, 128 << 20, 384 << 20) & ~int64_t{0xfffff};
  const size_t mapped = static_cast<size_t>(dram) * 2;
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    fprintf(stderr, "mb_ceiling: expected %zu bytes of memory to be available, got none\n", mapped);
    return 1;
  }
  madvise(memory, mapped, MADV_HUGEPAGE);
  memset(memory, 1, mapped);  // pages never written all map to one page of zeros, which stays in cache

  const Read read = cpu.avx512 ? read_avx512 : read_avx2;
  const Arithmetic fma = cpu.avx512 ? fma_avx512 : fma_avx2;
  const double fma_round = cpu.avx512 ? kAccumulators * 16 * 2 : 12 * 8 * 2;
  const double tile_round = 4.0 * 16 * 16 * 2;  // products of four tiles, times values a row
  struct Job {
    const char* name;
    Arithmetic run;
    double per_round;
  };
  const Job jobs[] = {
      {"fp32FmaGflops", fma, fma_round},
      {"bf16DotGflops", cpu.bf16 ? bf16_avx512 : nullptr, kAccumulators * 32 * 2},
      {"int8DotGops", cpu.vnni ? int8_avx512 : nullptr, kAccumulators * 64 * 2},
      {"bf16AmxGflops", cpu.amx ? bf16_amx : nullptr, tile_round * 32},
      {"int8AmxGops", cpu.amx ? int8_amx : nullptr, tile_round * 64},
  };
  struct Level {
    const char* name;
    int64_t bytes;
  };
  const Level levels[] = {
      {"l1ReadGBs", (l1 / 2) & ~int64_t{1023}}, {"l2ReadGBs", (l2 / 2) & ~int64_t{1023}},
      // Streams of these sizes a thread: on a shared machine no one figure describes the third-level cache.
      {"read3MBGBs", 3 << 20}, {"read6MBGBs", 6 << 20}, {"read12MBGBs", 12 << 20}, {"read24MBGBs", 24 << 20},
      {"dramReadGBs", dram}};

  const auto begin = Clock::now();
  std::vector<Figure> figures;
  for (const Level& level : levels) {
    Figure figure{level.name, {-1, -1}};
    for (int t = 1; t <= max_threads; ++t) {
      figure.value[t - 1] = read_rate(read, t, static_cast<const char*>(memory), dram, level.bytes);
    }
    figures.push_back(figure);
  }
  for (const Job& job : jobs) {
    Figure figure{job.name, {-1, -1}};
    for (int t = 1; t <= max_threads && job.run; ++t) figure.value[t - 1] = arithmetic_rate(job.run, t, job.per_round);
    figures.push_back(figure);
  }
  const double barrier = max_threads > 1 ? barrier_ns() : -1;

  printf("{\n  \"cpu\": \"%s\",\n  \"threads\": %d,\n", cpu_name().c_str(), max_threads);
  printf("  \"instructionSet\": \"%s\",\n", cpu.avx512 ? "avx512" : "avx2");
  printf("  \"cacheBytes\": { \"l1\": %lld, \"l2\": %lld, \"l3\": %lld },\n", static_cast<long long>(l1),
         static_cast<long long>(l2), static_cast<long long>(l3));
  for (const Figure& figure : figures) {
    printf("  \"%s\": { \"one\": ", figure.name);
    print_value(figure.value[0]);
    printf(", \"two\": ");
    print_value(figure.value[1]);
    printf(" },\n");
  }
  printf("  \"barrierNs\": ");
  print_value(barrier);
  printf(",\n  \"placement\": ");
  // Two cores that share a cache meet in well under this; cores on two complexes or sockets do not.
  printf(barrier < 0 ? "null" : barrier < 120 ? "\"near\"" : "\"far\"");
  printf(",\n  \"seconds\": %.1f\n}\n", seconds_since(begin));
  munmap(memory, mapped);
  return 0;
}
