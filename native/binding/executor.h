// One thread per device that runs its jobs in order, off the JS thread, and delivers their ends back to it.
#pragma once
#include <napi.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace mb::binding {

struct Job {
  virtual ~Job() = default;
  virtual void execute() = 0;              // on the executor's thread
  virtual void finish(Napi::Env env) = 0;  // on the JS thread, afterwards
  std::atomic<bool> cancelled{false};
};

class Executor {
 public:
  // The executor lives until shutdown() and deletes itself on the JS thread when its thread has ended, or when the
  // environment ends, which may be before its owner does. `slot` is where the owner keeps it: set here, and cleared
  // when the executor goes first.
  static void create(Napi::Env env, Executor** slot);
  void submit(std::unique_ptr<Job> job);
  // Whether all jobs have ended and been delivered: until the next submit() the JS thread may use the device itself.
  bool idle() const { return pending_ == 0; }
  // Asks the running job and all queued ones to stop; they end with what they have.
  void cancel();
  // The owner lets go; its slot is cleared.
  void shutdown();

 private:
  Executor() = default;
  void work();
  void stop();
  static void call_js(Napi::Env env, Napi::Function, Executor* self, Job* job);

  using Done = Napi::TypedThreadSafeFunction<Executor, Job, call_js>;
  Done done_;
  Napi::Env env_{nullptr};
  Executor** slot_ = nullptr;  // JS thread only
  int pending_ = 0;            // JS thread only: jobs not yet finished keep the process alive
  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::unique_ptr<Job>> queue_;
  Job* current_ = nullptr;
  bool stop_ = false;
};

}  // namespace mb::binding
