// Class numbers as ops take them: ids(R) and targets(R), u8 or i32, without gaps between rows.
#pragma once
#include "kernel.h"

namespace mb::cuda {

struct Ids {
  const void* data;
  bool bytes;
  __device__ __forceinline__ int operator[](int64_t r) const {
    return bytes ? static_cast<const uint8_t*>(data)[r] : static_cast<const int32_t*>(data)[r];
  }
};

inline Ids ids_of(const Tensor& t) { return {t.data, t.dtype == DType::u8}; }

inline const char* ids_why_not(const Tensor& t) {
  if (t.dtype != DType::u8 && t.dtype != DType::i32) return "ids or targets are neither u8 nor i32";
  return t.contiguous() ? nullptr : "ids or targets have gaps between rows";
}

}  // namespace mb::cuda
