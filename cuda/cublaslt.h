// cuBLASLt, opened at run time: nothing links it, and a machine without it uses our own kernels. Its headers are not
// needed; the few types and numbers of its C interface that we use are written out in cublaslt.cc.
#pragma once
#include <cstddef>
#include <cstdint>

#include "gemm.h"

namespace mb::cuda {

class CublasLt {
 public:
  // Null where the library is absent, too old, or switched off by MAMBABYTE_CUBLASLT=off. MAMBABYTE_CUBLASLT may also
  // name the file to open. The device must be current.
  static CublasLt* open();
  ~CublasLt();

  const char* version() const { return version_; }
  // Whether the epilogue can be expressed and cuBLASLt has an algorithm for these sizes and alignments.
  bool can(const Product& product);
  Status multiply(const Product& product, char* workspace, cudaStream_t stream);

  static constexpr int64_t kWorkspace = 32 << 20;

 private:
  struct State;
  CublasLt() = default;
  State* state_ = nullptr;
  char version_[32] = "";
};

}  // namespace mb::cuda
