// Class numbers as ops take them: ids(R) and targets(R), u8 or i32, without gaps between rows.
#pragma once
#include "kernel.h"

namespace mb::cuda {

constexpr int kIdsAtOnce = 4;
struct Ids4 {
  int id[kIdsAtOnce];
};

struct Ids {
  const void* data;
  bool bytes;
  __device__ __forceinline__ int operator[](int64_t r) const {
    return bytes ? static_cast<const uint8_t*>(data)[r] : static_cast<const int32_t*>(data)[r];
  }
  // r is a multiple of 4, and the ids lie on a 16-byte border.
  __device__ __forceinline__ Ids4 four_at(int64_t r) const {
    if (bytes) {
      const uchar4 v = *reinterpret_cast<const uchar4*>(static_cast<const uint8_t*>(data) + r);
      return {{v.x, v.y, v.z, v.w}};
    }
    const int4 v = *reinterpret_cast<const int4*>(static_cast<const int32_t*>(data) + r);
    return {{v.x, v.y, v.z, v.w}};
  }
};

inline Ids ids_of(const Tensor& t) { return {t.data, t.dtype == DType::u8}; }

inline const char* ids_why_not(const Tensor& t) {
  if (t.dtype != DType::u8 && t.dtype != DType::i32) return "ids or targets are neither u8 nor i32";
  return t.contiguous() ? nullptr : "ids or targets have gaps between rows";
}

}  // namespace mb::cuda
