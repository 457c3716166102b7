// Seconds spent in each node of a plan, for Backend::profile.
#pragma once
#include <algorithm>
#include <vector>

namespace mb {

struct PlanTimes {
  bool measuring = false;       // from the first question on
  std::vector<double> seconds;  // one a node

  // Hands over the sums since the last call.
  void take(double* to) {
    measuring = true;
    std::copy(seconds.begin(), seconds.end(), to);
    std::fill(seconds.begin(), seconds.end(), 0.0);
  }
};

}  // namespace mb
