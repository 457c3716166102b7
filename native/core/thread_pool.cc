#include "thread_pool.h"

#include <chrono>
#include <system_error>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mb {
namespace {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A barrier inside a step takes well under a microsecond when every thread has a core; after this many polls one of
// them has surely lost its core. Then the others sleep: polling on would only keep it from getting one back.
constexpr int kBarrierSpins = 2000;
// Between two runs a caller needs a few microseconds, or a millisecond to draft. A worker that sleeps meanwhile may be
// late by several, since its core sleeps too. So workers stay awake that long before they park, unless another pool
// needs the cores.
constexpr std::chrono::milliseconds kIdle(3);
constexpr int kPollsPerLook = 64;  // at the clock
std::atomic<const ThreadPool*> latest{nullptr};

// Polls, then sleeps, while `value` is `old`.
template <class T>
void wait_while(const std::atomic<T>& value, T old) {
  for (int spins = 0; spins < kBarrierSpins; spins++) {
    if (value.load(std::memory_order_acquire) != old) return;
    relax();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

void Barrier::wait() {
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
    return;
  }
  wait_while(phase_, phase);
}

void Team::barrier() const {
  if (size > 1) barrier_->wait();
}

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; i++) {
    try {
      threads_.emplace_back([this, i] { work(i); });
      size_++;
    } catch (const std::system_error&) {
      break;
    }
  }
  barrier_ = new Barrier(size_);
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_.store(true);
    epoch_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& t : threads_) t.join();
  delete barrier_;
}

void ThreadPool::run(void (*fn)(void*, int), void* context) {
  if (size_ == 1) {
    fn(context, 0);
    return;
  }
  latest.store(this, std::memory_order_relaxed);
  fn_ = fn;
  context_ = context;
  running_.store(size_ - 1, std::memory_order_relaxed);
  // seq_cst on epoch_ and parked_: a worker that parks after this store must see the new epoch, or be seen here.
  epoch_.fetch_add(1);
  if (parked_.load() > 0) {
    std::lock_guard lock(mutex_);
    wake_.notify_all();
  }
  fn(context, 0);
  for (int left = running_.load(std::memory_order_acquire); left != 0;
       left = running_.load(std::memory_order_acquire)) {
    wait_while(running_, left);
  }
}

// Polls until there is work after `seen`, or it is time to park.
void ThreadPool::stay_awake(uint32_t seen) const {
  const auto end = std::chrono::steady_clock::now() + kIdle;
  do {
    for (int polls = 0; polls < kPollsPerLook; polls++) {
      if (epoch_.load(std::memory_order_acquire) != seen) return;
      relax();
    }
  } while (latest.load(std::memory_order_relaxed) == this && std::chrono::steady_clock::now() < end);
}

void ThreadPool::work(int index) {
  uint32_t seen = 0;
  for (;;) {
    stay_awake(seen);
    if (epoch_.load(std::memory_order_acquire) == seen) {
      std::unique_lock lock(mutex_);
      parked_.fetch_add(1);
      wake_.wait(lock, [&] { return epoch_.load() != seen; });
      parked_.fetch_sub(1);
    }
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    fn_(context_, index);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
  }
}

}  // namespace mb
