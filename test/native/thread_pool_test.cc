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

// Tasks for whoever is free are done once each, whatever the threads' speed.
void take_tasks(void* context, int index) {
  auto& work = *static_cast<Work*>(context);
  mb::Team team;
  team.index = index;
  team.size = work.pool->size();
  team.barrier_ = &work.pool->barrier();
  for (int round = 0; round < work.rounds; round++) {
    team.each(int64_t(work.cells.size()), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) work.cells[size_t(i)] += 1;
      if (index == 0 && round % 2) std::this_thread::yield();
    });
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
  for (int threads = 1; threads <= 4; threads++) {
    for (size_t n : {0, 1, 2, 3, 5, 17, 64}) {
      mb::ThreadPool pool(threads);
      Work work{&pool, std::vector<long>(n), 9};
      for (int run = 0; run < 20; run++) pool.run(take_tasks, &work);
      for (const long cell : work.cells) EXPECT(cell == 20L * work.rounds);
    }
  }
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
