// A persistent pool of threads that run one function together. The caller is worker 0. Idle workers poll for some
// milliseconds, then park, so neither a decode loop nor one that drafts in between pays for waking them, and an idle
// process burns nothing.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "team.h"

namespace mb {

// Sense-counting barrier. Spins, then yields when the machine has fewer free cores than threads.
class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}
  void wait();

 private:
  const int size_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

class ThreadPool {
 public:
  // threads >= 1, the caller included. Returns fewer when the system refuses to start them (size() tells).
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }
  // Calls fn(context, index) on every thread, index 0 on the caller; returns when all are done. One caller at a time.
  void run(void (*fn)(void* context, int index), void* context);
  Barrier& barrier() { return *barrier_; }

 private:
  void work(int index);
  void stay_awake(uint32_t seen) const;

  int size_ = 1;
  std::vector<std::thread> threads_;
  Barrier* barrier_ = nullptr;
  void (*fn_)(void*, int) = nullptr;
  void* context_ = nullptr;
  std::mutex mutex_;
  std::condition_variable wake_;
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<int> running_{0};
  std::atomic<int> parked_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace mb
