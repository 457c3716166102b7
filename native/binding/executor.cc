#include "executor.h"

namespace mb::binding {

void Executor::create(Napi::Env env, Executor** slot) {
  auto* self = new Executor;
  self->env_ = env;
  self->slot_ = slot;
  *slot = self;
  self->done_ = Done::New(
      env, Napi::Function(), "mambabyte", 0, 1, self,
      [](Napi::Env, void*, Executor* e) {  // JS thread: after the thread's Release, or when the environment ends
        if (e->slot_) *e->slot_ = nullptr;
        e->stop();
        e->cancel();
        if (e->thread_.joinable()) e->thread_.join();
        delete e;
      },
      static_cast<void*>(nullptr));
  self->done_.Unref(env);
  self->thread_ = std::thread([self] { self->work(); });
}

void Executor::submit(std::unique_ptr<Job> job) {
  if (pending_++ == 0) done_.Ref(env_);
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(job));
  }
  wake_.notify_one();
}

void Executor::cancel() {
  std::lock_guard lock(mutex_);
  if (current_) current_->cancelled.store(true);
  for (auto& job : queue_) job->cancelled.store(true);
}

void Executor::shutdown() {
  if (slot_) *slot_ = nullptr;
  slot_ = nullptr;
  stop();
}

void Executor::stop() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
}

void Executor::work() {
  for (;;) {
    std::unique_ptr<Job> job;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) break;
      job = std::move(queue_.front());
      queue_.pop_front();
      current_ = job.get();
    }
    job->execute();
    {
      std::lock_guard lock(mutex_);
      current_ = nullptr;
    }
    Job* raw = job.release();
    if (done_.BlockingCall(raw) != napi_ok) {
      delete raw;  // the environment is ending: nobody is left to tell
      return;
    }
  }
  done_.Release();
}

void Executor::call_js(Napi::Env env, Napi::Function, Executor* self, Job* raw) {
  std::unique_ptr<Job> job(raw);
  if (env == nullptr) return;
  if (--self->pending_ == 0) self->done_.Unref(env);
  try {
    job->finish(env);
  } catch (const Napi::Error&) {
    // Settling a promise fails only while the environment is being torn down.
  }
}

}  // namespace mb::binding
