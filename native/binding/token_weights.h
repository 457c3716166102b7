// Which tokens of a distribution count, and how much: the one pass over a whole vocabulary that drafting bytes with a
// subword model takes for each token (lib/draft/byte-marginals.ts).
#pragma once
#include <napi.h>

namespace mb::binding {

// weighTokens(logits, ids, from, to, positions, sums) -> how many of ids[from, to) count
//   logits: Float32Array (V). ids: Int32Array, each below V.
//   positions: Int32Array of at least to - from: where in `ids` those that count are, ascending.
//   sums: Float64Array of one more: the weights of those before each, then of all. The best weighs 1.
// Throws a TypeError for another kind of array, a RangeError for one that is too short or shares memory with another,
// and for an id that is no class.
Napi::Value weigh_tokens(const Napi::CallbackInfo& info);

}  // namespace mb::binding
