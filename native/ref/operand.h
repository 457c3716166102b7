// How the reference reads and writes tensors: any dtype and row stride, widened to double and packed.
//
// Every reference kernel loads its operands into doubles, computes in double, and rounds once when it stores, so
// against f32 backends it is the accurate side, and with f64 tensors it is exact enough for central differences. All
// loads come before all stores: outputs may share memory with inputs.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "ops.h"
#include "tensor.h"

namespace mb::ref {

using Vec = std::vector<double>;

inline float from_bf16(uint16_t half) {
  const uint32_t bits = uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// IEEE binary16: 1 sign, 5 exponent and 10 fraction bits.
inline double from_f16(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double sign = half >> 15 ? -1.0 : 1.0;
  if (exponent == 31) return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * HUGE_VAL;
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

// To nearest, ties to even; NaN stays NaN.
inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// The same; beyond half a unit above 65504 it is infinite.
inline uint16_t to_f16(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs(static_cast<double>(value));
  if (std::isnan(value)) return sign | 0x7E00;
  if (size >= 65520) return sign | 0x7C00;
  int exponent = 0;
  std::frexp(size, &exponent);
  const int unit = std::max(exponent - 11, -24);  // the last place is 2^unit; below 2^-14 it stays the same
  return static_cast<uint16_t>(sign | ((unit + 24) * 1024 + static_cast<int>(std::nearbyint(std::ldexp(size, -unit)))));
}

template <class Stored, class Decode>
void load_as(const Tensor& t, Vec& to, Decode decode) {
  for (int64_t r = 0; r < t.rows(); r++) {
    for (int64_t c = 0; c < t.cols(); c++) to[r * t.cols() + c] = decode(t.row<Stored>(r)[c]);
  }
}

// Row-major, packed; empty for an absent operand.
inline Vec load(const Tensor& t) {
  if (!t) return {};
  Vec v(t.elems());
  const auto widen = [](auto value) { return static_cast<double>(value); };
  switch (t.dtype) {
    case DType::f32:
      load_as<float>(t, v, widen);
      break;
    case DType::f64:
      load_as<double>(t, v, widen);
      break;
    case DType::i8:
      load_as<int8_t>(t, v, widen);
      break;
    case DType::u8:
      load_as<uint8_t>(t, v, widen);
      break;
    case DType::i32:
      load_as<int32_t>(t, v, widen);
      break;
    case DType::bf16:
      load_as<uint16_t>(t, v, from_bf16);
      break;
    case DType::f16:
      load_as<uint16_t>(t, v, from_f16);
      break;
  }
  return v;
}

// Bytes or i32 class numbers; a double holds both exactly.
inline std::vector<int64_t> load_ids(const Tensor& t) {
  const Vec v = load(t);
  return {v.begin(), v.end()};
}

// A weight matrix whose row m is scale[m] times what is stored; scale may be absent.
inline Vec load_weight(const Tensor& weight, const Tensor& scale) {
  Vec v = load(weight);
  const Vec s = load(scale);
  const int64_t cols = weight.cols();
  for (size_t m = 0; m < s.size(); m++) {
    for (int64_t c = 0; c < cols; c++) v[m * cols + c] *= s[m];
  }
  return v;
}

// Writes a floating-point tensor; nothing for an absent one.
inline void store(const Tensor& t, const Vec& v) {
  if (!t) return;
  for (int64_t r = 0; r < t.rows(); r++) {
    for (int64_t c = 0; c < t.cols(); c++) {
      const double value = v[r * t.cols() + c];
      if (t.dtype == DType::f64) {
        t.row<double>(r)[c] = value;
      } else if (t.dtype == DType::bf16) {
        t.row<uint16_t>(r)[c] = to_bf16(static_cast<float>(value));
      } else if (t.dtype == DType::f16) {
        t.row<uint16_t>(r)[c] = to_f16(static_cast<float>(value));
      } else {
        t.row<float>(r)[c] = static_cast<float>(value);
      }
    }
  }
}

// Gradients of parameters: `accumulate` adds to what is there.
inline void store_gradient(const Tensor& t, Vec v, bool accumulate) {
  if (!t) return;
  if (accumulate) {
    const Vec before = load(t);
    for (size_t i = 0; i < v.size(); i++) v[i] += before[i];
  }
  store(t, v);
}

}  // namespace mb::ref
