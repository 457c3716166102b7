// The threads that run one plan together. Every thread calls every kernel of the plan, in order, with its own index.
#pragma once
#include <cstdint>

#include "tensor.h"

namespace mb {

class Barrier;  // thread_pool.h

struct Team {
  int index = 0;  // 0 .. size-1
  int size = 1;
  Barrier* barrier_ = nullptr;
  char* scratch = nullptr;  // this plan's scratch, shared by the team, 64-byte aligned
  int64_t scratch_bytes = 0;

  // All threads meet here; writes before it are seen after it.
  void barrier() const;

  // This thread's share of n tasks: a contiguous range. What a task computes must not depend on `size`, so that results
  // are the same bits for any number of threads; only who runs it may.
  struct Range {
    int64_t begin, end;
  };
  Range share(int64_t n) const { return {n * index / size, n * (index + 1) / size}; }
};

// A kernel may use internal barriers; the plan puts one after every node.
using Kernel = void (*)(const Node&, const Team&);
// Bytes of scratch a node needs from a team of `threads`.
using ScratchSize = int64_t (*)(const Node&, int threads);
// Null, or why this node cannot run here.
using WhyNot = const char* (*)(const Node&);

struct KernelEntry {
  Kernel run = nullptr;
  ScratchSize scratch = nullptr;
  WhyNot why_not = nullptr;
};

}  // namespace mb
