// Kernels of every instruction set this processor has, on buffers of the exact size, with 1 to 3 threads: what reaches
// past an operand, or races, is found by the sanitizers; the result must equal the reference.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "backend.h"
#include "cpu/dispatch.h"
#include "expect.h"
#include "ops.h"

namespace {

// Operands of one node, each in an allocation of its own and of its exact size, so that ASan sees its ends.
struct Case {
  int op;
  std::vector<double> attrs;
  std::deque<std::unique_ptr<char[]>> memory;
  std::vector<mb::Tensor> outs, ins;
  uint32_t random = 12345;

  Case(int number, std::vector<double> attributes) : op(number), attrs(std::move(attributes)) {}

  float draw() {
    random = random * 1664525u + 1013904223u;
    return float(random >> 8) / 8388608.0f - 1.0f;
  }
  mb::Tensor make(std::vector<int64_t> shape, mb::DType dtype) {
    mb::Tensor t;
    t.dtype = dtype;
    t.rank = int32_t(shape.size());
    for (size_t i = 0; i < shape.size(); i++) t.shape[i] = shape[i];
    t.row_stride = t.cols();
    const size_t bytes = size_t(t.elems() * mb::dtype_size(dtype));
    memory.emplace_back(new char[bytes]);
    t.data = memory.back().get();
    std::memset(t.data, 0xff, bytes);
    return t;
  }
  void out(std::vector<int64_t> shape) { outs.push_back(make(std::move(shape), mb::DType::f32)); }
  void in(std::vector<int64_t> shape, float scale = 1, float shift = 0) {
    ins.push_back(make(std::move(shape), mb::DType::f32));
    float* x = ins.back().ptr<float>();
    for (int64_t i = 0; i < ins.back().elems(); i++) x[i] = scale * draw() + shift;
  }
  void in_i32(std::vector<int32_t> values) {
    ins.push_back(make({int64_t(values.size())}, mb::DType::i32));
    std::memcpy(ins.back().data, values.data(), values.size() * sizeof(int32_t));
  }
  // Of sequences of T steps: some of them, none and more than there are; or not given at all.
  void in_lengths(int64_t B, int64_t T, bool given) {
    if (!given) return;
    std::vector<int32_t> values;
    for (int64_t b = 0; b < B; b++) values.push_back(int32_t(b % 3 == 0 ? T / 2 : b % 3 == 1 ? -1 : T + 5));
    in_i32(std::move(values));
  }
  void in_bf16(std::vector<int64_t> shape) {
    ins.push_back(make(std::move(shape), mb::DType::bf16));
    for (int64_t i = 0; i < ins.back().elems(); i++) {
      const float value = draw();
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      ins.back().ptr<uint16_t>()[i] = uint16_t(bits >> 16);
    }
  }
  void in_i8(std::vector<int64_t> shape) {
    ins.push_back(make(std::move(shape), mb::DType::i8));
    for (int64_t i = 0; i < ins.back().elems(); i++) ins.back().ptr<int8_t>()[i] = int8_t(127 * draw());
  }
  void absent() { ins.emplace_back(); }

  mb::Node node() const {
    mb::Node n;
    n.op = op;
    n.n_out = int32_t(outs.size());
    n.n_in = int32_t(ins.size());
    n.n_attr = int32_t(attrs.size());
    n.outs = outs.data();
    n.ins = ins.data();
    n.attrs = attrs.data();
    n.scope = "test";
    return n;
  }
};

// Results of all outputs, one after another.
std::vector<float> run(const mb::Backend& backend, const char* target, int threads, const Case& c) {
  mb::DeviceOptions options;
  options.threads = threads;
  options.target = target;
  void *device = nullptr, *plan = nullptr;
  EXPECT(backend.open(options, &device).ok());
  const mb::Node node = c.node();
  EXPECT(backend.why_not(device, node) == nullptr);
  EXPECT(backend.compile(device, &node, 1, &plan).ok());
  mb::Run run;
  run.steps = 3;
  EXPECT(backend.run(device, plan, run).ok());
  backend.drop(device, plan);
  backend.close(device);
  std::vector<float> all;
  for (const mb::Tensor& t : c.outs) all.insert(all.end(), t.ptr<float>(), t.ptr<float>() + t.elems());
  return all;
}

void check(const Case& c, double tolerance) {
  const std::vector<float> want = run(*mb::ref_backend(), nullptr, 1, c);
  double norm = 0;
  for (const float w : want) norm += double(w) * w;
  for (int i = 0; i < mb::cpu::target_count(); i++) {
    if (!mb::cpu::target_supported(i)) continue;
    std::vector<float> first;
    for (int threads = 1; threads <= 3; threads++) {
      const std::vector<float> got = run(*mb::cpu_backend(), mb::cpu::target_name(i), threads, c);
      double difference = 0;
      for (size_t k = 0; k < want.size(); k++) difference += (double(got[k]) - want[k]) * (double(got[k]) - want[k]);
      EXPECT(std::sqrt(difference) <= tolerance * std::sqrt(norm));
      if (threads == 1) first = got;
      EXPECT(std::memcmp(got.data(), first.data(), got.size() * sizeof(float)) == 0);
    }
  }
}

void linear(int64_t rows, int64_t k, int64_t m) {
  for (int dtype = 0; dtype < 3; dtype++) {
    Case c(mb::op::linear, {});
    c.out({rows, m});
    c.in({rows, k});
    if (dtype == 0) c.in({m, k});
    if (dtype == 1) c.in_bf16({m, k});
    if (dtype == 2) c.in_i8({m, k});
    c.in({m});
    if (dtype == 2) {
      c.in({m}, 0.001f, 0.01f);
    } else {
      c.absent();
    }
    c.in({rows, m});
    check(c, dtype == 0 ? 1e-5 : 2e-2);
  }
  Case input(mb::op::linear_grad_input, {});
  input.out({rows, k});
  input.in({rows, m});
  input.in({m, k});
  check(input, 1e-5);
  Case weight(mb::op::linear_grad_weight, {0});
  weight.out({m, k});
  weight.in({rows, m});
  weight.in({rows, k});
  check(weight, 1e-5);
}

void scan(int64_t B, int64_t T, int64_t E, int64_t N) {
  const int64_t chunks = (T + 63) / 64;
  for (const bool cut : {false, true}) {
    Case c(mb::op::selective_scan, {1, 64});
    c.out({B, T, E});
    c.out({B, E, N});
    c.out({B, chunks, E * N});
    c.out({T, B, E * N});
    c.in({B, T, E});
    c.in({B, T, E}, 3);
    c.in({E, N}, 1, -1.5f);
    c.in({B, T, N});
    c.in({B, T, N});
    c.in({E});
    c.in({B, T, E});
    c.in({E});
    c.in({B, E, N});
    c.in_lengths(B, T, cut);
    check(c, 1e-5);
  }
  Case g(mb::op::selective_scan_grad, {1, 64, 0});
  for (int i = 0; i < 2; i++) g.out({B, T, E});
  g.out({E, N});
  for (int i = 0; i < 2; i++) g.out({B, T, N});
  g.out({E});
  g.out({B, T, E});
  g.out({E});
  g.out({B, E, N});
  for (int i = 0; i < 3; i++) g.in({B, T, E});
  g.in({E, N}, 1, -1.5f);
  for (int i = 0; i < 2; i++) g.in({B, T, N});
  g.in({E});
  g.in({B, T, E});
  g.in({E});
  g.in({B, chunks, E * N});
  g.in({B, E, N});
  check(g, 1e-4);
}

void convolution(int64_t B, int64_t T, int64_t E, int64_t K) {
  for (const bool cut : {false, true}) {
    Case c(mb::op::causal_conv1d, {1});
    c.out({B, T, E});
    c.out({B, K - 1, E});
    c.in({B, T, E});
    c.in({E, K});
    c.in({E});
    c.in({B, K - 1, E});
    c.in_lengths(B, T, cut);
    check(c, 1e-5);
  }
  Case g(mb::op::causal_conv1d_grad, {1, 0});
  g.out({B, T, E});
  g.out({E, K});
  g.out({E});
  g.out({B, K - 1, E});
  for (int i = 0; i < 2; i++) g.in({B, T, E});
  g.in({E, K});
  g.in({E});
  for (int i = 0; i < 2; i++) g.in({B, K - 1, E});
  check(g, 1e-5);
}

void norms(int64_t R, int64_t D) {
  Case c(mb::op::layer_norm, {1e-5});
  c.out({R, D});
  c.out({R});
  c.out({R});
  c.in({R, D});
  c.in({D});
  c.in({D});
  check(c, 1e-5);
  Case g(mb::op::layer_norm_grad, {0});
  g.out({R, D});
  g.out({D});
  g.out({D});
  for (int i = 0; i < 2; i++) g.in({R, D});
  g.in({D});
  g.in({R}, 0.1f);
  g.in({R}, 0.1f, 1);
  check(g, 1e-5);
}

void diagonal_ssm(int64_t B, int64_t T, int64_t E, int64_t M) {
  Case hold(mb::op::zero_order_hold, {});
  for (int i = 0; i < 2; i++) hold.out({E, M, 2});
  hold.in({E}, 1, -4);
  for (int i = 0; i < 2; i++) hold.in({E, M}, 3);
  check(hold, 1e-6);
  Case hold_grad(mb::op::zero_order_hold_grad, {0});
  hold_grad.out({E});
  for (int i = 0; i < 2; i++) hold_grad.out({E, M});
  for (int i = 0; i < 2; i++) hold_grad.in({E, M, 2});
  hold_grad.in({E}, 1, -4);
  for (int i = 0; i < 2; i++) hold_grad.in({E, M}, 3);
  check(hold_grad, 1e-6);
  Case steps(mb::op::diagonal_ssm, {});
  steps.out({B, T, E});
  steps.out({B, E, M, 2});
  steps.out({T, B, E * M * 2});
  steps.in({B, T, E});
  steps.in({E, M, 2}, 0.7f);
  for (int i = 0; i < 2; i++) steps.in({E, M, 2});
  steps.in({E});
  steps.in({B, E, M, 2});
  check(steps, 1e-5);
  Case kernel(mb::op::ssm_kernel, {});
  kernel.out({E, T});
  kernel.in({E, M, 2}, 0.7f);
  for (int i = 0; i < 2; i++) kernel.in({E, M, 2});
  check(kernel, 1e-5);
  Case kernel_grad(mb::op::ssm_kernel_grad, {0});
  for (int i = 0; i < 3; i++) kernel_grad.out({E, M, 2});
  kernel_grad.in({E, T});
  kernel_grad.in({E, M, 2}, 0.7f);
  for (int i = 0; i < 2; i++) kernel_grad.in({E, M, 2});
  check(kernel_grad, 1e-5);
  Case convolution(mb::op::long_conv, {});
  convolution.out({B, T, E});
  convolution.in({B, T, E});
  convolution.in({E, T});
  convolution.in({E});
  check(convolution, 1e-5);
  Case convolution_grad(mb::op::long_conv_grad, {0});
  convolution_grad.out({B, T, E});
  convolution_grad.out({E, T});
  convolution_grad.out({E});
  for (int i = 0; i < 2; i++) convolution_grad.in({B, T, E});
  convolution_grad.in({E, T});
  convolution_grad.in({E});
  check(convolution_grad, 1e-5);
}

void attention(int64_t T, int64_t earlier, int64_t P) {
  const int64_t B = 2, S = T + earlier, H = 4, J = 2;
  for (const bool cached : {false, true}) {
    Case c(mb::op::attention, {double(H)});
    c.out({B, T, H * P});
    c.out({B, T, H});
    c.in({B, T, H * P});
    for (int i = 0; i < 2; i++) c.in({B, S, J * P});
    if (cached) c.in_i32({int32_t(earlier), int32_t(earlier / 2)});
    check(c, 1e-5);
  }
  Case g(mb::op::attention_grad, {double(H)});
  g.out({B, T, H * P});
  for (int i = 0; i < 2; i++) g.out({B, S, J * P});
  for (int i = 0; i < 2; i++) g.in({B, T, H * P});
  for (int i = 0; i < 2; i++) g.in({B, S, J * P});
  g.in({B, T, H * P});
  g.in({B, T, H}, 0.3f, float(std::log(double(S))));
  check(g, 1e-4);
  Case r(mb::op::rope, {double(H), 10000, 1000});
  r.out({B, T, H * 2 * P});
  r.in({B, T, H * 2 * P});
  check(r, 1e-5);
}

}  // namespace

void test_kernels() {
  for (const int64_t n : {1, 7, 16, 17, 33}) {
    linear(1, n, 17);
    linear(3, 65, n);
    linear(40, n, 2 * n + 1);
    norms(n, 2 * n + 1);
    convolution(2, n, n + 1, 4);
    scan(2, 2 * n + 1, n, n == 33 ? 16 : 3);
    attention(n, 2 * n - 1, n);
    diagonal_ssm(n % 3 + 1, 2 * n + 1, n, n / 2 + 1);
  }
  scan(1, 130, 17, 16);
  attention(130, 40, 16);
  attention(1, 600, 16);
  linear(64, 300, 80);
}
