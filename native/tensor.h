// Plain data shared by every backend: dtypes, tensors, nodes. No behaviour beyond address arithmetic, so that the same
// structs can cross the C border to a backend library that is opened at run time.
#pragma once
#include <cstddef>
#include <cstdint>

namespace mb {

// The order is part of the contract with lib/tensor.ts.
enum class DType : int32_t { f32, f64, bf16, i8, u8, i32, f16 };

inline int64_t dtype_size(DType t) {
  switch (t) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f64:
      return 8;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::i8:
    case DType::u8:
      return 1;
  }
  return 0;
}

constexpr int kMaxRank = 4;

// A row-major tensor with one stride: `row_stride` elements lie between consecutive rows of the last axis. A contiguous
// tensor has row_stride == cols(). Rows beyond the last axis are always evenly spaced, so (B, T, D) is B * T rows of D.
struct Tensor {
  void* data = nullptr;  // null: an absent optional operand
  DType dtype = DType::f32;
  int32_t rank = 0;
  int64_t shape[kMaxRank] = {1, 1, 1, 1};
  int64_t row_stride = 0;

  explicit operator bool() const { return data != nullptr; }
  int64_t dim(int i) const { return shape[i < 0 ? rank + i : i]; }
  int64_t cols() const { return rank ? shape[rank - 1] : 1; }
  int64_t rows() const {
    int64_t n = 1;
    for (int i = 0; i + 1 < rank; i++) n *= shape[i];
    return n;
  }
  int64_t elems() const { return rows() * cols(); }
  bool contiguous() const { return row_stride == cols() || rows() <= 1; }
  template <class T>
  T* row(int64_t r) const {
    return static_cast<T*>(data) + r * row_stride;
  }
  template <class T>
  T* ptr() const {
    return static_cast<T*>(data);
  }
};

// Whether a tensor, where it is present, holds counts as ops take them: i32, without gaps.
inline bool are_lengths(const Tensor& t) { return !t || (t.dtype == DType::i32 && t.contiguous()); }

// One op of a plan. Operand and attribute positions are named by ops.h (from ops.def).
struct Node {
  int32_t op = 0;
  int32_t n_out = 0, n_in = 0, n_attr = 0;
  const Tensor* outs = nullptr;
  const Tensor* ins = nullptr;
  const double* attrs = nullptr;
  const char* scope = "";  // "layers.3.mixer", for messages and profiles

  // Operands past the end are absent optional ones.
  const Tensor& out(int i) const { return i < n_out ? outs[i] : absent(); }
  const Tensor& in(int i) const { return i < n_in ? ins[i] : absent(); }
  double attr(int i) const { return i < n_attr ? attrs[i] : 0.0; }

 private:
  static const Tensor& absent() {
    static const Tensor none;
    return none;
  }
};

}  // namespace mb
