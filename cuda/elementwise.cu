// Elementwise ops over tensors of equal shape, whose row strides may differ; equations in native/ref/elementwise.h.
// copy and concat move and convert between dtypes. One pass over memory, so the limit is its bandwidth.
#include <cuda_fp16.h>

#include "check.h"
#include "dtype.cuh"
#include "early.cuh"
#include "kernel.h"
#include "vector.cuh"

namespace mb::cuda {
namespace {

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }

// Each is y = f(a) or y = f(a, b); b is not read where kBinary is false.
struct Add {
  static constexpr bool kBinary = true;
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};
struct Mul {
  static constexpr bool kBinary = true;
  __device__ __forceinline__ float operator()(float a, float b) const { return a * b; }
};
struct Scale {
  static constexpr bool kBinary = false;
  float factor;
  __device__ __forceinline__ float operator()(float x, float) const { return factor * x; }
};
struct Silu {
  static constexpr bool kBinary = false;
  __device__ __forceinline__ float operator()(float x, float) const { return x * sigmoid(x); }
};
struct SiluGrad {
  static constexpr bool kBinary = true;
  __device__ __forceinline__ float operator()(float dy, float x) const {
    const float s = sigmoid(x);
    return dy * s * (1.0f + x * (1.0f - s));
  }
};
struct Swiglu {
  static constexpr bool kBinary = true;
  __device__ __forceinline__ float operator()(float gate, float up) const { return gate * sigmoid(gate) * up; }
};
struct Softplus {
  static constexpr bool kBinary = false;
  __device__ __forceinline__ float operator()(float x, float) const { return x > 20.0f ? x : log1pf(expf(x)); }
};
struct SoftplusGrad {
  static constexpr bool kBinary = true;
  __device__ __forceinline__ float operator()(float dy, float x) const { return x > 20.0f ? dy : dy * sigmoid(x); }
};
struct NegExp {
  static constexpr bool kBinary = false;
  __device__ __forceinline__ float operator()(float x, float) const { return -expf(x); }
};

// Rows of one operand.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
};
template <class T>
Rows<T> rows_of(const Tensor& t) {
  return {t.ptr<T>(), t.row_stride};
}

// y may be a or b. A thread loads all its vectors before it stores any, so that several loads are under way.
template <int N, int PerThread, class F, class A, class B, class Y>
__global__ void __launch_bounds__(kMapThreads)
    map_kernel(F f, Rows<const A> a, Rows<const B> b, Rows<Y> y, int64_t rows, int64_t cols, bool aligned) {
  let_next_start();
  wait_for_previous();
  const int64_t first = (int64_t{blockIdx.x} * PerThread * blockDim.x + threadIdx.x) * N;
  const int64_t step = int64_t{blockDim.x} * N;
  for (int64_t r = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; r < rows; r += int64_t{gridDim.y} * blockDim.y) {
    const A* row_a = a.data + r * a.stride;
    const B* row_b = b.data + r * b.stride;
    Y* row_y = y.data + r * y.stride;
    if (aligned && first + step * (PerThread - 1) + N <= cols) {
      float va[PerThread][N], vb[PerThread][N];
#pragma unroll
      for (int i = 0; i < PerThread; i++) {
        load_vector<N>(row_a + first + i * step, va[i]);
        if constexpr (F::kBinary) load_vector<N>(row_b + first + i * step, vb[i]);
      }
#pragma unroll
      for (int i = 0; i < PerThread; i++) {
#pragma unroll
        for (int j = 0; j < N; j++) va[i][j] = f(va[i][j], F::kBinary ? vb[i][j] : 0.0f);
        store_vector<N>(row_y + first + i * step, va[i]);
      }
      continue;
    }
    for (int i = 0; i < PerThread; i++) {
      const int64_t c = first + i * step;
      if (aligned && c + N <= cols) {
        float va[N], vb[N];
        load_vector<N>(row_a + c, va);
        if constexpr (F::kBinary) load_vector<N>(row_b + c, vb);
#pragma unroll
        for (int j = 0; j < N; j++) va[j] = f(va[j], F::kBinary ? vb[j] : 0.0f);
        store_vector<N>(row_y + c, va);
      } else {
        for (int64_t j = c; j < c + N && j < cols; j++) {
          row_y[j] = from_float<Y>(f(to_float(row_a[j]), F::kBinary ? to_float(row_b[j]) : 0.0f));
        }
      }
    }
  }
}

template <class F, class A, class B, class Y>
Status launch_map(F f, const Tensor& a, const Tensor& b, const Tensor& y, const Launch& launch) {
  constexpr bool kNarrow = sizeof(A) == 2 && sizeof(B) == 2 && sizeof(Y) == 2;
  constexpr int N = kNarrow ? 8 : 4, kPerThread = kNarrow ? 2 : 4;
  const bool flat = a.contiguous() && y.contiguous() && (!F::kBinary || b.contiguous());
  const int64_t rows = flat ? 1 : y.rows(), cols = flat ? y.elems() : y.cols();
  if (rows * cols == 0) return {};
  const bool aligned = vectors_fit(a, N) && vectors_fit(y, N) && (!F::kBinary || vectors_fit(b, N));
  const int64_t units = ceil_div(cols, N);
  const dim3 block = row_block(units), grid = row_grid(units, rows, block, kPerThread);
  return start_early(map_kernel<N, kPerThread, F, A, B, Y>, grid, block, 0, *launch.props, launch.stream, f,
                     rows_of<const A>(a), rows_of<const B>(b), rows_of<Y>(y), rows, cols, aligned);
}

template <class F>
Status launch_function(F f, const Node& node, const Launch& launch) {
  const Tensor &a = node.in(0), &b = F::kBinary ? node.in(1) : a, &y = node.out(0);
  return with_activation(a.dtype, [&](auto ta) {
    return with_activation(y.dtype, [&](auto ty) {
      using A = decltype(ta);
      using Y = decltype(ty);
      if constexpr (F::kBinary) {
        return with_activation(b.dtype, [&](auto tb) { return launch_map<F, A, decltype(tb), Y>(f, a, b, y, launch); });
      } else {
        return launch_map<F, A, A, Y>(f, a, a, y, launch);
      }
    });
  });
}

template <class F>
Status run(const Node& node, const Launch& launch) {
  return launch_function(F{}, node, launch);
}

Status run_scale(const Node& node, const Launch& launch) {
  return launch_function(Scale{static_cast<float>(node.attr(at::scale::attr::factor))}, node, launch);
}

const char* map_why_not(const Node& node, const Props&) {
  for (int i = 0; i < node.n_in; i++) {
    if (!is_activation(node.in(i))) return "an input is neither f32 nor bf16";
  }
  return is_activation(node.out(0)) ? nullptr : "the output is neither f32 nor bf16";
}

template <class T>
struct SwigluGradArgs {
  Rows<const T> dy, gate, up;
  Rows<T> dgate, dup;
};

// A vector of N a thread; all operands are read before anything is stored, so the gradients may lie over them.
template <int N, class T>
__global__ void __launch_bounds__(kMapThreads)
    swiglu_grad_rows(const SwigluGradArgs<T> p, int64_t rows, int64_t cols, bool aligned) {
  let_next_start();
  wait_for_previous();
  const int64_t c = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * N;
  const auto gradients = [](float dy, float gate, float up, float* dgate, float* dup) {
    const float s = sigmoid(gate);
    *dgate = dy * up * s * (1.0f + gate * (1.0f - s));
    *dup = dy * gate * s;
  };
  for (int64_t r = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; r < rows; r += int64_t{gridDim.y} * blockDim.y) {
    const T *dy = p.dy.data + r * p.dy.stride, *gate = p.gate.data + r * p.gate.stride;
    const T* up = p.up.data + r * p.up.stride;
    T *dgate = p.dgate.data + r * p.dgate.stride, *dup = p.dup.data + r * p.dup.stride;
    if (aligned && c + N <= cols) {
      float d[N], x[N], u[N];
      load_vector<N>(dy + c, d);
      load_vector<N>(gate + c, x);
      load_vector<N>(up + c, u);
#pragma unroll
      for (int j = 0; j < N; j++) gradients(d[j], x[j], u[j], &x[j], &u[j]);
      store_vector<N>(dgate + c, x);
      store_vector<N>(dup + c, u);
    } else {
      for (int64_t j = c; j < c + N && j < cols; j++) {
        float a, b;
        gradients(to_float(dy[j]), to_float(gate[j]), to_float(up[j]), &a, &b);
        dgate[j] = from_float<T>(a);
        dup[j] = from_float<T>(b);
      }
    }
  }
}

Status run_swiglu_grad(const Node& node, const Launch& launch) {
  namespace in = at::swiglu_grad::in;
  namespace out = at::swiglu_grad::out;
  const Tensor &dy = node.in(in::dy), &gate = node.in(in::gate), &up = node.in(in::up);
  const Tensor &dgate = node.out(out::dgate), &dup = node.out(out::dup);
  if (dy.elems() == 0) return {};
  return with_activation(dy.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int N = 16 / sizeof(T);
    bool flat = true, aligned = true;
    for (const Tensor* o : {&dy, &gate, &up, &dgate, &dup}) {
      flat = flat && o->contiguous();
      aligned = aligned && vectors_fit(*o, N);
    }
    const int64_t rows = flat ? 1 : dy.rows(), cols = flat ? dy.elems() : dy.cols(), units = ceil_div(cols, N);
    const dim3 block = row_block(units), grid = row_grid(units, rows, block, 1);
    const SwigluGradArgs<T> p{rows_of<const T>(dy), rows_of<const T>(gate), rows_of<const T>(up), rows_of<T>(dgate),
                              rows_of<T>(dup)};
    return start_early(swiglu_grad_rows<N, T>, grid, block, 0, *launch.props, launch.stream, p, rows, cols, aligned);
  });
}

const char* swiglu_grad_why_not(const Node& node, const Props&) {
  const DType dtype = node.in(at::swiglu_grad::in::dy).dtype;
  bool same = is_activation(node.in(at::swiglu_grad::in::dy));
  for (int i = 0; i < node.n_in; i++) same = same && node.in(i).dtype == dtype;
  for (int i = 0; i < node.n_out; i++) same = same && node.out(i).dtype == dtype;
  return same ? nullptr : "the operands are neither all f32 nor all bf16";
}

// Conversions round to nearest even; f64 becomes bf16 by way of f32, as in the reference.
template <class Y, class X>
__device__ __forceinline__ Y convert(X x) {
  if constexpr (std::is_same_v<X, Y>) {
    return x;
  } else if constexpr (std::is_same_v<X, __half>) {
    return convert<Y>(__half2float(x));
  } else if constexpr (std::is_same_v<X, bf16>) {
    return static_cast<Y>(__bfloat162float(x));
  } else if constexpr (std::is_same_v<Y, bf16>) {
    return __float2bfloat16_rn(static_cast<float>(x));
  } else {
    return static_cast<Y>(x);
  }
}

struct CopyPart {
  const void* x;
  void* y;
  int64_t x_stride, y_stride, cols;
  bool aligned;
};
constexpr int kCopyParts = 16;
struct CopyParts {
  CopyPart part[kCopyParts];
};

// One part for each z of the grid; all have the same rows.
template <int N, int PerThread, class X, class Y>
__global__ void __launch_bounds__(kMapThreads)
    copy_parts_kernel(const __grid_constant__ CopyParts parts, int64_t rows) {
  const CopyPart& part = parts.part[blockIdx.z];
  const int64_t first = (int64_t{blockIdx.x} * PerThread * blockDim.x + threadIdx.x) * N;
  const int64_t step = int64_t{blockDim.x} * N;
  for (int64_t r = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; r < rows; r += int64_t{gridDim.y} * blockDim.y) {
    const X* x = static_cast<const X*>(part.x) + r * part.x_stride;
    Y* y = static_cast<Y*>(part.y) + r * part.y_stride;
    alignas(16) X from[PerThread][N];
#pragma unroll
    for (int i = 0; i < PerThread; i++) {
      const int64_t c = first + i * step;
      if (part.aligned && c + N <= part.cols) load_raw<N>(x + c, from[i]);
    }
#pragma unroll
    for (int i = 0; i < PerThread; i++) {
      const int64_t c = first + i * step;
      if (part.aligned && c + N <= part.cols) {
        alignas(16) Y to[N];
#pragma unroll
        for (int j = 0; j < N; j++) to[j] = convert<Y>(from[i][j]);
        store_raw<N>(y + c, to);
      } else {
        for (int64_t j = c; j < c + N && j < part.cols; j++) y[j] = convert<Y>(x[j]);
      }
    }
  }
}

// Calls fn(X{}) for a dtype that copy reads, or writes where kWrite is set.
template <bool kWrite, class Fn>
Status with_copied(DType t, Fn fn) {
  if (t == DType::f64) return fn(double{});
  if constexpr (!kWrite) {
    if (t == DType::f16) return fn(__half{});
  }
  return with_activation(t, fn);
}

constexpr bool is_copied(DType t, bool written) {
  return t == DType::f32 || t == DType::bf16 || t == DType::f64 || (t == DType::f16 && !written);
}

int copy_vector(DType x, DType y) { return dtype_size(x) == 2 && dtype_size(y) == 2 ? 8 : 4; }

CopyPart part_of(const Tensor& x, const Tensor& y, int64_t y_offset, int64_t cols) {
  Tensor to = y;
  to.data = y.ptr<char>() + y_offset * dtype_size(y.dtype);
  const int n = copy_vector(x.dtype, y.dtype);
  return {x.data, to.data, x.row_stride, y.row_stride, cols, vectors_fit(x, n) && vectors_fit(to, n)};
}

Status launch_parts(const CopyParts& parts, int n, DType from, DType to, int64_t rows, const Launch& launch) {
  int64_t cols = 0;
  for (int i = 0; i < n; i++) cols = std::max(cols, parts.part[i].cols);
  if (rows * cols == 0) return {};
  return with_copied<false>(from, [&](auto x) {
    return with_copied<true>(to, [&](auto y) -> Status {
      using X = decltype(x);
      using Y = decltype(y);
      constexpr int N = sizeof(X) == 2 && sizeof(Y) == 2 ? 8 : 4, kPerThread = N == 8 ? 2 : 4;
      const int64_t units = ceil_div(cols, N);
      const dim3 block = row_block(units);
      dim3 grid = row_grid(units, rows, block, kPerThread);
      grid.z = static_cast<unsigned>(n);
      copy_parts_kernel<N, kPerThread, X, Y><<<grid, block, 0, launch.stream>>>(parts, rows);
      MB_CUDA_LAUNCHED("copy");
      return {};
    });
  });
}

Status run_copy(const Node& node, const Launch& launch) {
  const Tensor &x = node.in(at::copy::in::x), &y = node.out(at::copy::out::y);
  const bool flat = x.contiguous() && y.contiguous();
  CopyParts parts;
  parts.part[0] = part_of(x, y, 0, flat ? x.elems() : x.cols());
  return launch_parts(parts, 1, x.dtype, y.dtype, flat ? 1 : x.rows(), launch);
}

const char* copy_why_not(const Node& node, const Props&) {
  if (!is_copied(node.in(0).dtype, false)) return "x is not f32, f64, bf16 or f16";
  return is_copied(node.out(0).dtype, true) ? nullptr : "y is not f32, f64 or bf16";
}

// Parts of one dtype go together, up to kCopyParts a launch.
Status run_concat(const Node& node, const Launch& launch) {
  const Tensor& y = node.out(at::concat::out::y);
  for (const DType from : {DType::f32, DType::bf16}) {
    CopyParts parts;
    int n = 0;
    int64_t offset = 0;
    for (int i = 0; i < node.n_in; i++) {
      const Tensor& x = node.in(i);
      if (x.dtype == from) parts.part[n++] = part_of(x, y, offset, x.cols());
      offset += x.cols();
      if (n == kCopyParts || (i + 1 == node.n_in && n > 0)) {
        MB_TRY(launch_parts(parts, n, from, y.dtype, y.rows(), launch));
        n = 0;
      }
    }
  }
  return {};
}

}  // namespace

const Kernel add_kernel = {run<Add>, nullptr, map_why_not};
const Kernel mul_kernel = {run<Mul>, nullptr, map_why_not};
const Kernel scale_kernel = {run_scale, nullptr, map_why_not};
const Kernel silu_kernel = {run<Silu>, nullptr, map_why_not};
const Kernel silu_grad_kernel = {run<SiluGrad>, nullptr, map_why_not};
const Kernel swiglu_kernel = {run<Swiglu>, nullptr, map_why_not};
const Kernel swiglu_grad_kernel = {run_swiglu_grad, nullptr, swiglu_grad_why_not};
const Kernel softplus_kernel = {run<Softplus>, nullptr, map_why_not};
const Kernel softplus_grad_kernel = {run<SoftplusGrad>, nullptr, map_why_not};
const Kernel neg_exp_kernel = {run<NegExp>, nullptr, map_why_not};
const Kernel copy_kernel = {run_copy, nullptr, copy_why_not};
const Kernel concat_kernel = {run_concat, nullptr, map_why_not};

}  // namespace mb::cuda
