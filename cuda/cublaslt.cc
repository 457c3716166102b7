#include "cublaslt.h"

#include <dlfcn.h>
#include <library_types.h>

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <string>
#include <tuple>

#include "check.h"

namespace mb::cuda {
namespace {

// The part of cublasLt.h that is used; the numbers are those of CUDA 12 and 13.
constexpr int kComputeF32 = 68;
constexpr int kOpN = 0, kOpT = 1;
constexpr int kDescTransA = 3, kDescTransB = 4, kDescEpilogue = 7, kDescBiasPointer = 8;
constexpr int kDescBiasType = 26;
constexpr int kEpilogueBias = 4;
constexpr int kPrefWorkspace = 1, kPrefReductions = 3, kPrefAlignA = 5, kPrefAlignB = 6, kPrefAlignC = 7,
              kPrefAlignD = 8;
// Partial sums over the depth meet in f32 and in a fixed order.
constexpr uint32_t kReductionCompute = 2;

struct Algo {
  uint64_t data[8];
};
struct Heuristic {
  Algo algo;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

using Handle = void*;
using Desc = void*;
using Layout = void*;
using Preference = void*;

struct Api {
  size_t (*version)();
  int (*create)(Handle*);
  int (*destroy)(Handle);
  int (*desc_create)(Desc*, int compute, cudaDataType_t scale);
  int (*desc_set)(Desc, int attribute, const void*, size_t);
  int (*desc_destroy)(Desc);
  int (*layout_create)(Layout*, cudaDataType_t, uint64_t rows, uint64_t cols, int64_t stride);
  int (*layout_destroy)(Layout);
  int (*pref_create)(Preference*);
  int (*pref_set)(Preference, int attribute, const void*, size_t);
  int (*pref_destroy)(Preference);
  int (*heuristic)(Handle, Desc, Layout a, Layout b, Layout c, Layout d, Preference, int wanted, Heuristic*,
                   int* found);
  int (*matmul)(Handle, Desc, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta,
                const void* c, Layout, void* d, Layout, const Algo*, void* workspace, size_t bytes, cudaStream_t);
};

template <class F>
bool find(void* library, const char* name, F* f) {
  *f = reinterpret_cast<F>(dlsym(library, name));
  return *f != nullptr;
}

bool find_all(void* l, Api* a) {
  return find(l, "cublasLtGetVersion", &a->version) && find(l, "cublasLtCreate", &a->create) &&
         find(l, "cublasLtDestroy", &a->destroy) && find(l, "cublasLtMatmulDescCreate", &a->desc_create) &&
         find(l, "cublasLtMatmulDescSetAttribute", &a->desc_set) &&
         find(l, "cublasLtMatmulDescDestroy", &a->desc_destroy) &&
         find(l, "cublasLtMatrixLayoutCreate", &a->layout_create) &&
         find(l, "cublasLtMatrixLayoutDestroy", &a->layout_destroy) &&
         find(l, "cublasLtMatmulPreferenceCreate", &a->pref_create) &&
         find(l, "cublasLtMatmulPreferenceSetAttribute", &a->pref_set) &&
         find(l, "cublasLtMatmulPreferenceDestroy", &a->pref_destroy) &&
         find(l, "cublasLtMatmulAlgoGetHeuristic", &a->heuristic) && find(l, "cublasLtMatmul", &a->matmul);
}

void* open_library() {
  const char* named = std::getenv("MAMBABYTE_CUBLASLT");
  if (named && std::strcmp(named, "off") == 0) return nullptr;
  if (named && *named) return dlopen(named, RTLD_NOW | RTLD_LOCAL);
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "/usr/local/cuda/lib64/libcublasLt.so"}) {
    if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
  }
  return nullptr;
}

// Up to the 256 bytes that cuBLASLt distinguishes.
uint32_t alignment(const void* p) { return uint32_t(1) << std::countr_zero(reinterpret_cast<uintptr_t>(p) | 256); }

// What a plan depends on, beyond the handle.
using Key = std::tuple<DType, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, uint32_t, uint32_t,
                       uint32_t, uint32_t>;

Key key_of(const Product& p) {
  const Epilogue& e = p.epilogue;
  const int flags = p.a.across | p.b.across << 1 | e.bf16 << 2 | (e.bias != nullptr) << 3 | (e.add != nullptr) << 4;
  return {p.dtype,
          p.rows,
          p.cols,
          p.depth,
          p.a.stride,
          p.b.stride,
          e.stride,
          e.add ? e.add_stride : 0,
          flags,
          alignment(p.a.data),
          alignment(p.b.data),
          alignment(e.c),
          alignment(e.add)};
}

}  // namespace

// cuBLASLt thinks in columns, so what it computes is C^T (cols x rows) = B A^T, with b as its first factor.
struct CublasLt::State {
  struct Plan {
    bool found = false;
    Desc desc = nullptr;
    Layout a = nullptr, b = nullptr, c = nullptr, d = nullptr;
    Algo algo;
  };

  void* library = nullptr;
  Api api;
  Handle handle = nullptr;
  std::mutex mutex;
  std::map<Key, Plan> plans;

  ~State() {
    for (auto& [key, plan] : plans) {
      if (plan.desc) api.desc_destroy(plan.desc);
      for (Layout layout : {plan.a, plan.b, plan.c, plan.d}) {
        if (layout) api.layout_destroy(layout);
      }
    }
    if (handle) api.destroy(handle);
    if (library) dlclose(library);
  }

  template <class T>
  bool set(Desc desc, int attribute, T value) {
    return api.desc_set(desc, attribute, &value, sizeof value) == 0;
  }

  bool describe(const Product& p, Plan* plan) {
    const Epilogue& e = p.epilogue;
    const cudaDataType_t in = p.dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
    const cudaDataType_t out = e.bf16 ? CUDA_R_16BF : CUDA_R_32F;
    const auto layout = [&](Layout* l, const Factor& f, int64_t n) {
      const uint64_t rows = f.across ? n : p.depth, cols = f.across ? p.depth : n;
      return api.layout_create(l, in, rows, cols, f.stride) == 0;
    };
    if (api.desc_create(&plan->desc, kComputeF32, CUDA_R_32F) != 0) return false;
    if (!set(plan->desc, kDescTransA, int32_t(p.b.across ? kOpN : kOpT))) return false;
    if (!set(plan->desc, kDescTransB, int32_t(p.a.across ? kOpT : kOpN))) return false;
    if (e.bias) {
      if (!set(plan->desc, kDescEpilogue, uint32_t(kEpilogueBias))) return false;
      if (!set(plan->desc, kDescBiasType, int32_t(CUDA_R_32F))) return false;
      if (!set(plan->desc, kDescBiasPointer, e.bias)) return false;
    }
    return layout(&plan->a, p.a, p.rows) && layout(&plan->b, p.b, p.cols) &&
           api.layout_create(&plan->c, out, p.cols, p.rows, e.add ? e.add_stride : e.stride) == 0 &&
           api.layout_create(&plan->d, out, p.cols, p.rows, e.stride) == 0;
  }

  bool choose(const Product& p, Plan* plan) {
    Preference pref = nullptr;
    if (api.pref_create(&pref) != 0) return false;
    const uint64_t workspace = CublasLt::kWorkspace;
    const uint32_t align[4] = {alignment(p.b.data), alignment(p.a.data),
                               alignment(p.epilogue.add ? p.epilogue.add : p.epilogue.c), alignment(p.epilogue.c)};
    bool ok = api.pref_set(pref, kPrefWorkspace, &workspace, sizeof workspace) == 0 &&
              api.pref_set(pref, kPrefReductions, &kReductionCompute, sizeof kReductionCompute) == 0 &&
              api.pref_set(pref, kPrefAlignA, &align[0], 4) == 0 &&
              api.pref_set(pref, kPrefAlignB, &align[1], 4) == 0 &&
              api.pref_set(pref, kPrefAlignC, &align[2], 4) == 0 && api.pref_set(pref, kPrefAlignD, &align[3], 4) == 0;
    Heuristic result;
    int found = 0;
    ok = ok && api.heuristic(handle, plan->desc, plan->b, plan->a, plan->c, plan->d, pref, 1, &result, &found) == 0 &&
         found > 0 && result.state == 0 && result.workspace <= workspace;
    api.pref_destroy(pref);
    if (ok) plan->algo = result.algo;
    return ok;
  }

  // Holds the mutex while it is used.
  Plan& plan_for(const Product& p) {
    const auto [at, fresh] = plans.try_emplace(key_of(p));
    if (fresh) at->second.found = describe(p, &at->second) && choose(p, &at->second);
    return at->second;
  }
};

CublasLt* CublasLt::open() {
  void* library = open_library();
  if (!library) return nullptr;
  auto* lt = new (std::nothrow) CublasLt;
  auto* state = new (std::nothrow) State;
  if (!lt || !state) {
    delete state;
    delete lt;
    dlclose(library);
    return nullptr;
  }
  lt->state_ = state;
  state->library = library;
  if (!find_all(library, &state->api) || state->api.create(&state->handle) != 0) {
    delete lt;
    return nullptr;
  }
  // 130100 is 13.1.0; 120803 is 12.8.3.
  const size_t v = state->api.version();
  std::snprintf(lt->version_, sizeof lt->version_, "%zu.%zu.%zu", v / 10000, v / 100 % 100, v % 100);
  return lt;
}

CublasLt::~CublasLt() { delete state_; }

bool CublasLt::can(const Product& p) {
  const Epilogue& e = p.epilogue;
  if (e.add && e.add_bf16 != e.bf16) return false;
  // It has no scale per column of ours, and its bias is of the output's type.
  if (e.scale || (e.bias && e.bf16)) return false;
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->plan_for(p).found;
}

Status CublasLt::multiply(const Product& p, char* workspace, cudaStream_t stream) {
  const Epilogue& e = p.epilogue;
  const std::lock_guard<std::mutex> lock(state_->mutex);
  State::Plan& plan = state_->plan_for(p);
  if (!plan.found) return fail(Code::unsupported, "cublasLt: no algorithm for this product");
  if (e.bias) state_->set(plan.desc, kDescBiasPointer, e.bias);
  const float one = 1, beta = e.add ? 1.0f : 0.0f;
  // A kernel's first use loads its code, which a strict capture forbids.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  MB_CUDA(cudaThreadExchangeStreamCaptureMode(&mode));
  const int code = state_->api.matmul(state_->handle, plan.desc, &one, p.b.data, plan.b, p.a.data, plan.a, &beta,
                                      e.add ? e.add : e.c, plan.c, e.c, plan.d, &plan.algo, workspace,
                                      size_t(CublasLt::kWorkspace), stream);
  MB_CUDA(cudaThreadExchangeStreamCaptureMode(&mode));
  if (code != 0) return fail(Code::device, "cublasLtMatmul: status %d", code);
  return {};
}

}  // namespace mb::cuda
