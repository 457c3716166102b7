// linear, linear_grad_input and linear_grad_weight as matrix products.
//
//   y(R,M) = x(R,K) weight(M,K)^T + bias + add
//   dx(R,K) = dy(R,M) weight(M,K) + add      dweight(M,K) = dy(R,M)^T x(R,K)
//
// f32 factors are multiplied in f32. Where the weight of linear and linear_grad_input is bf16 or i8, or either factor
// of linear_grad_weight is bf16, both factors are bf16 (f32 ones are rounded, i8 ones are exact) and their sums f32. A
// factor of another dtype or off alignment is first packed into scratch.
#include "check.h"
#include "dtype.cuh"
#include "gemm.h"
#include "linear_epilogue.h"
#include "linear_rows.h"

namespace mb::cuda {
namespace {

constexpr int kPackThreads = 256;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// A matrix on its way into a product.
struct Pack {
  Tensor from;
  bool needed = false;
  int64_t stride = 0;  // of the packed rows, elements
  int64_t bytes = 0;
};

struct Job {
  Product product;
  Pack a, b;
};

template <class From, class To>
__global__ void __launch_bounds__(kPackThreads)
    pack_kernel(const From* from, int64_t from_stride, To* to, int64_t to_stride, int64_t rows, int64_t cols) {
  for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    for (int64_t c = int64_t(blockIdx.x) * kPackThreads + threadIdx.x; c < cols; c += int64_t(gridDim.x) * kPackThreads)
      to[r * to_stride + c] = from_float<To>(to_float(from[r * from_stride + c]));
  }
}

// Eight elements a thread.
template <class From, class To>
__global__ void __launch_bounds__(kPackThreads)
    pack8_kernel(const From* from, int64_t from_stride, To* to, int64_t to_stride, int64_t rows, int64_t cols) {
  struct alignas(sizeof(From) * 8 < 16 ? sizeof(From) * 8 : 16) In {
    From v[8];
  };
  struct alignas(16) Out {
    To v[8];
  };
  const int64_t per_row = cols / 8, n = rows * per_row;
  for (int64_t at = int64_t(blockIdx.x) * kPackThreads + threadIdx.x; at < n; at += int64_t(gridDim.x) * kPackThreads) {
    const int64_t r = at / per_row, c = at % per_row * 8;
    const In in = *reinterpret_cast<const In*>(from + r * from_stride + c);
    Out out;
#pragma unroll
    for (int i = 0; i < 8; i++) out.v[i] = from_float<To>(to_float(in.v[i]));
    *reinterpret_cast<Out*>(to + r * to_stride + c) = out;
  }
}

template <class From, class To>
Status pack(const Pack& p, char* scratch, const Props& props, cudaStream_t stream) {
  const int64_t rows = p.from.rows(), cols = p.from.cols(), stride = p.from.row_stride;
  const auto* from = p.from.ptr<const From>();
  To* to = reinterpret_cast<To*>(scratch);
  const bool by8 = cols % 8 == 0 && stride % 8 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
  if (by8) {
    const int64_t blocks = (rows * cols / 8 + kPackThreads - 1) / kPackThreads;
    const int64_t most = int64_t(props.sm_count) * 32;
    pack8_kernel<<<unsigned(blocks < most ? blocks : most), kPackThreads, 0, stream>>>(from, stride, to, p.stride, rows,
                                                                                       cols);
  } else {
    const dim3 grid(unsigned((cols + kPackThreads - 1) / kPackThreads), unsigned(rows < 65535 ? rows : 65535));
    pack_kernel<<<grid, kPackThreads, 0, stream>>>(from, stride, to, p.stride, rows, cols);
  }
  MB_CUDA_LAUNCHED("pack");
  return {};
}

template <class To>
Status pack_to(const Pack& p, char* scratch, const Props& props, cudaStream_t stream) {
  if (p.from.dtype == DType::i8) return pack<int8_t, To>(p, scratch, props, stream);
  if (p.from.dtype == DType::bf16) return pack<bf16, To>(p, scratch, props, stream);
  return pack<float, To>(p, scratch, props, stream);
}

// Fills in one factor: as it lies where the product can take it, else packed.
Pack factor(const Tensor& t, DType dtype, bool across, Factor* f) {
  Pack p;
  p.from = t;
  f->data = t.data;
  f->stride = t.row_stride;
  f->across = across;
  const int64_t each = 16 / dtype_size(dtype);
  const bool fits = t.dtype == dtype && reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.row_stride % each == 0;
  if (fits) return p;
  p.needed = true;
  p.stride = round_up(t.cols(), each);
  p.bytes = round_up(t.rows() * p.stride * dtype_size(dtype), 256);
  f->stride = p.stride;
  return p;
}

Epilogue plain_epilogue(const Tensor& out, bool accumulate) {
  Epilogue e;
  e.c = out.data;
  e.stride = out.row_stride;
  e.bf16 = out.dtype == DType::bf16;
  if (accumulate) {
    e.add = e.c;
    e.add_stride = e.stride;
    e.add_bf16 = e.bf16;
  }
  return e;
}

Job job(const Tensor& a, bool across_a, const Tensor& b, bool across_b, DType dtype, const Epilogue& e) {
  Job j;
  j.product.dtype = dtype;
  j.product.rows = across_a ? a.cols() : a.rows();
  j.product.cols = across_b ? b.cols() : b.rows();
  j.product.depth = across_a ? a.rows() : a.cols();
  j.product.epilogue = e;
  j.a = factor(a, dtype, across_a, &j.product.a);
  j.b = factor(b, dtype, across_b, &j.product.b);
  return j;
}

Job linear_job(const Node& node) {
  const Tensor& weight = node.in(at::linear::in::weight);
  const DType dtype = weight.dtype == DType::f32 ? DType::f32 : DType::bf16;
  return job(node.in(at::linear::in::x), false, weight, false, dtype, linear_epilogue(node));
}

Job grad_input_job(const Node& node) {
  const Tensor& weight = node.in(at::linear_grad_input::in::weight);
  const Tensor& add = node.in(at::linear_grad_input::in::add);
  Epilogue epilogue = plain_epilogue(node.out(at::linear_grad_input::out::dx), false);
  epilogue.add = add.data;
  epilogue.add_stride = add.row_stride;
  epilogue.add_bf16 = add.dtype == DType::bf16;
  return job(node.in(at::linear_grad_input::in::dy), false, weight, true, weight.dtype, epilogue);
}

Job grad_weight_job(const Node& node) {
  namespace in = at::linear_grad_weight::in;
  const Tensor& dy = node.in(in::dy);
  const Tensor& x = node.in(in::x);
  const DType dtype = dy.dtype == DType::f32 && x.dtype == DType::f32 ? DType::f32 : DType::bf16;
  const bool accumulate = node.attr(at::linear_grad_weight::attr::accumulate) != 0;
  return job(dy, true, x, true, dtype, plain_epilogue(node.out(at::linear_grad_weight::out::dweight), accumulate));
}

int64_t job_scratch(const Job& j, const Props& props) {
  return j.a.bytes + j.b.bytes + multiply_workspace(j.product, props);
}

Status run(Job j, const Launch& launch) {
  char* at = launch.scratch;
  const bool f32 = j.product.dtype == DType::f32;
  const auto place = [&](const Pack& p, Factor* f) -> Status {
    if (!p.needed) return {};
    f->data = at;
    MB_TRY(f32 ? pack_to<float>(p, at, *launch.props, launch.stream)
               : pack_to<bf16>(p, at, *launch.props, launch.stream));
    at += p.bytes;
    return {};
  };
  MB_TRY(place(j.a, &j.product.a));
  MB_TRY(place(j.b, &j.product.b));
  return multiply(j.product, *launch.props, at, launch.stream);
}

bool few_rows(const Node& node) { return has_few_rows(node.in(at::linear::in::x)); }

Status linear_launch(const Node& node, const Launch& launch) {
  if (few_rows(node)) return linear_rows(node, *launch.props, launch.stream);
  return run(linear_job(node), launch);
}

int64_t linear_scratch(const Node& node, const Props& props) {
  return few_rows(node) ? 0 : job_scratch(linear_job(node), props);
}

const char* linear_why_not(const Node& node, const Props&) {
  namespace in = at::linear::in;
  const Tensor& weight = node.in(in::weight);
  if (weight.dtype == DType::i8 && !node.in(in::scale)) return "i8 weight without a scale per row";
  if (weight.dtype != DType::i8 && !is_activation(weight)) return "weight is not f32, bf16 or i8";
  if (!is_activation(node.in(in::x)) || !is_activation(node.out(at::linear::out::y)))
    return "x or y is not f32 or bf16";
  if (node.in(in::add) && !is_activation(node.in(in::add))) return "add is not f32 or bf16";
  if (node.in(in::bias) && node.in(in::bias).dtype != DType::f32) return "bias is not f32";
  if (node.in(in::scale) && node.in(in::scale).dtype != DType::f32) return "scale is not f32";
  return nullptr;
}

Status grad_input_launch(const Node& node, const Launch& launch) { return run(grad_input_job(node), launch); }

int64_t grad_input_scratch(const Node& node, const Props& props) { return job_scratch(grad_input_job(node), props); }

const char* grad_input_why_not(const Node& node, const Props&) {
  namespace in = at::linear_grad_input::in;
  const bool ok = is_activation(node.in(in::dy)) && is_activation(node.in(in::weight)) &&
                  (!node.in(in::add) || is_activation(node.in(in::add))) &&
                  is_activation(node.out(at::linear_grad_input::out::dx));
  return ok ? nullptr : "an operand is not f32 or bf16";
}

Status grad_weight_launch(const Node& node, const Launch& launch) { return run(grad_weight_job(node), launch); }

int64_t grad_weight_scratch(const Node& node, const Props& props) { return job_scratch(grad_weight_job(node), props); }

const char* grad_weight_why_not(const Node& node, const Props&) {
  namespace in = at::linear_grad_weight::in;
  const bool ok = is_activation(node.in(in::dy)) && is_activation(node.in(in::x)) &&
                  is_activation(node.out(at::linear_grad_weight::out::dweight));
  return ok ? nullptr : "an operand is not f32 or bf16";
}

}  // namespace

const Kernel linear_kernel = {linear_launch, linear_scratch, linear_why_not};
const Kernel linear_grad_input_kernel = {grad_input_launch, grad_input_scratch, grad_input_why_not};
const Kernel linear_grad_weight_kernel = {grad_weight_launch, grad_weight_scratch, grad_weight_why_not};

}  // namespace mb::cuda
