#include "token_weights.h"

#include <array>
#include <cstdint>
#include <limits>

#include "args.h"

namespace mb::binding {
namespace {

// Tokens this many nats below the best one do not count.
constexpr int kNegligible = 9;

// exp(-i / kPerNat). From its factor and not from libm, whose last bits are not those of another machine.
constexpr int kPerNat = 16;
constexpr auto kExp = [] {
  std::array<double, kNegligible * kPerNat + 1> table{};
  double value = 1;
  for (double& entry : table) {
    entry = value;
    value *= 0.93941306281347578612;  // exp(-1 / 16)
  }
  return table;
}();

// exp(-x) for 0 <= x <= kNegligible, right to 3e-10 of it: the nearest entry, and four terms of the series for the
// rest.
double decayed(double x) {
  const int nearest = int(x * kPerNat + 0.5);
  const double r = double(nearest) / kPerNat - x;
  return kExp[size_t(nearest)] * (1 + r * (1 + r * (1.0 / 2 + r * (1.0 / 6 + r * (1.0 / 24)))));
}

// The largest logit of some ids; false where one of them is no class.
bool find_max(std::span<const float> logits, std::span<const int32_t> ids, float* max) {
  float most = -std::numeric_limits<float>::infinity();
  for (const int32_t id : ids) {
    if (uint32_t(id) >= logits.size()) return false;
    most = logits[size_t(id)] > most ? logits[size_t(id)] : most;
  }
  *max = most;
  return true;
}

template <typename T, typename U>
bool overlap(std::span<T> a, std::span<U> b) {
  const auto begin = [](const auto& s) { return reinterpret_cast<uintptr_t>(s.data()); };
  return begin(a) < begin(b) + b.size_bytes() && begin(b) < begin(a) + a.size_bytes();
}

}  // namespace

Napi::Value weigh_tokens(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto logits = elements<float>(info, 0, "logits");
  const auto ids = elements<int32_t>(info, 1, "ids");
  const int64_t from = integer(info, 2, "from"), to = integer(info, 3, "to");
  const auto positions = elements<int32_t>(info, 4, "positions");
  const auto sums = elements<double>(info, 5, "sums");
  if (from > to || size_t(to) > ids.size()) {
    throw Napi::RangeError::New(env, "native: expected from and to to be a range of ids");
  }
  const auto n = size_t(to - from);
  if (positions.size() < n || sums.size() <= n) {
    throw Napi::RangeError::New(env, "native: expected positions and sums to hold all of the range");
  }
  if (overlap(positions, logits) || overlap(positions, ids) || overlap(positions, sums) || overlap(sums, logits) ||
      overlap(sums, ids)) {
    throw Napi::RangeError::New(env, "native: expected positions and sums to share no memory");
  }
  float max;
  if (!find_max(logits, ids.subspan(size_t(from), n), &max)) {
    throw Napi::RangeError::New(env, "native: expected ids to be below the number of logits");
  }
  // Which tokens count follows no pattern, so a jump would often be guessed wrong. Distances to the best lie where the
  // sums come.
  const double least = double(max) - kNegligible;
  size_t count = 0;
  for (int64_t i = from; i < to; i++) {
    const double x = logits[size_t(ids[size_t(i)])];
    positions[count] = int32_t(i);
    sums[count] = double(max) - x;
    count += x > least;
  }
  double sum = 0;
  for (size_t k = 0; k < count; k++) {
    const double weight = decayed(sums[k]);
    sums[k] = sum;
    sum += weight;
  }
  sums[count] = sum;
  return Napi::Number::New(env, double(count));
}

}  // namespace mb::binding
