// The pool under stress: many short runs, barriers inside them, pauses long enough to park the workers, pools made and
// dropped at once, and several pools side by side.
#include "core/thread_pool.h"

#include <chrono>
#include <thread>
#include <vector>

#include "expect.h"

namespace {

struct Work {
  mb::ThreadPool* pool;
  std::vector<long> cells;  // plain memory: a missing happens-before is a race that TSan reports
  int rounds;
};

// Each thread adds to its neighbour's cell in turn; the barrier alone makes that safe.
void rotate(void* context, int index) {
  auto& work = *static_cast<Work*>(context);
  const int size = work.pool->size();
  mb::Team team;
  team.index = index;
  team.size = size;
  team.barrier_ = &work.pool->barrier();
  for (int round = 0; round < work.rounds; round++) {
    work.cells[size_t((index + round) % size)] += 1;
    team.barrier();
  }
}

void stress(int threads, int runs, int rounds) {
  mb::ThreadPool pool(threads);
  Work work{&pool, std::vector<long>(size_t(pool.size())), rounds};
  for (int run = 0; run < runs; run++) {
    pool.run(rotate, &work);
    if (run % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  for (const long cell : work.cells) EXPECT(cell == long(runs) * rounds);
}

}  // namespace

void test_thread_pool() {
  for (int threads = 1; threads <= 4; threads++) stress(threads, 300, 7);
  for (int i = 0; i < 100; i++) mb::ThreadPool unused(3);
  for (int i = 0; i < 100; i++) stress(2, 1, 1);
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; i++) callers.emplace_back([] { stress(2, 100, 3); });
  for (std::thread& caller : callers) caller.join();
  // Shares cover every task once, whatever the team.
  for (int size = 1; size <= 7; size++) {
    for (int64_t n = 0; n < 40; n++) {
      int64_t next = 0;
      for (int index = 0; index < size; index++) {
        mb::Team team;
        team.index = index;
        team.size = size;
        const auto [begin, end] = team.share(n);
        EXPECT(begin == next && end >= begin);
        next = end;
      }
      EXPECT(next == n);
    }
  }
}
