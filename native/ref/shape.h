// Data movement.
//
//   all_reduce: y <- x
//   copy:   y <- x, between f32, f64 and bf16 (rounded to nearest even)
//   concat: y(R, sum of d_i) <- parts (R, d_i), joined along the last axis
#pragma once
#include "operand.h"

namespace mb::ref {

inline void copy(const Node& node) { store(node.out(at::copy::out::y), load(node.in(at::copy::in::x))); }

// A world of one.
inline void all_reduce(const Node& node) {
  store(node.out(at::all_reduce::out::y), load(node.in(at::all_reduce::in::x)));
}

inline void concat(const Node& node) {
  const Tensor& y = node.out(at::concat::out::y);
  Vec joined(y.elems());
  int64_t first = 0;
  for (int i = 0; i < node.n_in; i++) {
    const Tensor& part = node.in(i);
    const Vec v = load(part);
    for (int64_t r = 0; r < part.rows(); r++) {
      for (int64_t c = 0; c < part.cols(); c++) joined[r * y.cols() + first + c] = v[r * part.cols() + c];
    }
    first += part.cols();
  }
  store(y, joined);
}

}  // namespace mb::ref
