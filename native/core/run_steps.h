// The loop behind Run, for backends that finish a step before they start the next one.
#pragma once
#include <algorithm>

#include "../backend.h"

namespace mb {

// The stop that the watched ids end in once `done` steps are made, or -1.
inline int32_t find_stop(const Run& run, int64_t done) {
  const int32_t* end = run.watched + done;
  int32_t start = 0;
  for (int32_t i = 0; i < run.n_stops; start = run.stop_ends[i++]) {
    const int64_t length = run.stop_ends[i] - start;
    if (length <= done + run.history && std::equal(run.stops + start, run.stops + run.stop_ends[i], end - length)) {
      return i;
    }
  }
  return -1;
}

// step() -> Status runs the plan once; read(to) -> Status copies the watched tensor out.
template <class Step, class Read>
Status run_steps(Run& run, Step step, Read read) {
  const int64_t ids = run.watch ? run.watch->elems() : 0;
  while (run.done < run.steps) {
    if (run.done > 0 && run.go_on && !run.go_on(run.context)) break;
    MB_TRY(step());
    if (ids) MB_TRY(read(run.watched + run.done * ids));
    run.done++;
    if (run.n_stops && (run.stopped_by = find_stop(run, run.done)) >= 0) break;
  }
  return {};
}

}  // namespace mb
