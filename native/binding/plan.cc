#include <chrono>
#include <cstring>

#include "args.h"
#include "device.h"

namespace mb::binding {
namespace {

// Runs a plan up to `steps` times. After each run the i32 tensor `watch` is copied out: the sampled classes of a decode
// step. Ends early when cancelled, when `max_ms` have passed, or when a sequence's output ends in one of `stops`
// (checked for a single sequence only; batches are watched by lib/).
struct StepsRun {
  std::shared_ptr<PlanState> plan;
  int64_t steps = 1;
  double max_ms = 0;
  const Tensor* watch = nullptr;
  std::vector<int32_t> stops, stop_ends;  // as in Run
  std::vector<int32_t> history;           // what came before this call, for stops that began there
  size_t skip = 0;
  const std::atomic<bool>* job_cancelled = nullptr;
  std::chrono::steady_clock::time_point start;

  Status status;
  Run run;

  bool stopping() const {
    return (job_cancelled && job_cancelled->load(std::memory_order_relaxed)) ||
           plan->cancelled.load(std::memory_order_relaxed);
  }

  static bool go_on(void* context) {
    const auto& self = *static_cast<StepsRun*>(context);
    const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - self.start;
    return !self.stopping() && !(self.max_ms > 0 && spent.count() > self.max_ms);
  }

  void execute() {
    skip = history.size();
    if (stopping()) return;
    start = std::chrono::steady_clock::now();
    const size_t ids = watch ? size_t(watch->elems()) : 0;
    history.resize(skip + size_t(steps) * ids);
    run.steps = steps;
    run.watch = watch;
    run.watched = history.data() + skip;
    run.history = int64_t(skip);
    run.stops = stops.data();
    run.stop_ends = stop_ends.data();
    run.n_stops = ids == 1 ? int32_t(stop_ends.size()) : 0;
    run.go_on = go_on;
    run.context = this;
    status = plan->device->backend->run(plan->device->handle, plan->handle, run);
    history.resize(skip + size_t(run.done) * ids);
  }

  // { steps, cancelled, stop, watched }
  Napi::Object result(Napi::Env env) const {
    Napi::Object result = Napi::Object::New(env);
    result["steps"] = Napi::Number::New(env, double(run.done));
    result["cancelled"] = Napi::Boolean::New(env, run.stopped_by < 0 && run.done < steps && stopping());
    result["stop"] = Napi::Number::New(env, run.stopped_by);
    Napi::Int32Array out = Napi::Int32Array::New(env, history.size() - skip);
    if (history.size() > skip) std::memcpy(out.Data(), history.data() + skip, (history.size() - skip) * 4);
    result["watched"] = out;
    return result;
  }
};

struct RunJob : Job {
  RunJob(Napi::Env env, StepsRun what) : run(std::move(what)), deferred(env) { run.job_cancelled = &cancelled; }

  StepsRun run;
  Napi::Promise::Deferred deferred;

  void execute() override { run.execute(); }

  void finish(Napi::Env env) override {
    Napi::HandleScope scope(env);
    if (run.status.ok()) {
      deferred.Resolve(run.result(env));
    } else {
      deferred.Reject(to_error(env, run.status).Value());
    }
  }
};

std::vector<int32_t> to_vector(const Napi::Int32Array& a) { return {a.Data(), a.Data() + a.ElementLength()}; }

// What { steps, maxMs, watch, stops, history } asks of a plan.
StepsRun steps_of(Napi::Env env, std::shared_ptr<PlanState> plan, const Napi::Value& options) {
  StepsRun run;
  run.plan = std::move(plan);
  if (!options.IsObject()) return run;
  const auto o = options.As<Napi::Object>();
  if (o.Get("steps").IsNumber()) run.steps = o.Get("steps").As<Napi::Number>().Int64Value();
  if (o.Get("maxMs").IsNumber()) run.max_ms = o.Get("maxMs").As<Napi::Number>().DoubleValue();
  if (o.Get("watch").IsNumber()) {
    const auto i = size_t(o.Get("watch").As<Napi::Number>().Int64Value());
    const std::vector<Tensor>& tensors = run.plan->tensors;
    if (i >= tensors.size() || tensors[i].dtype != DType::i32 || !tensors[i].contiguous()) {
      throw Napi::TypeError::New(env, "native: expected watch to name a contiguous int32 tensor of the plan");
    }
    run.watch = &tensors[i];
  }
  if (o.Get("history").IsTypedArray()) run.history = to_vector(o.Get("history").As<Napi::Int32Array>());
  if (o.Get("stops").IsArray()) {
    const auto list = o.Get("stops").As<Napi::Array>();
    for (uint32_t i = 0; i < list.Length(); i++) {
      const auto stop = to_vector(list.Get(i).As<Napi::Int32Array>());
      run.stops.insert(run.stops.end(), stop.begin(), stop.end());
      run.stop_ends.push_back(int32_t(run.stops.size()));
    }
  }
  return run;
}

}  // namespace

PlanState::~PlanState() {
  if (handle) device->backend->drop(device->handle, handle);
}

Napi::Function Plan::define(Napi::Env env) {
  return DefineClass(env, "Plan",
                     {InstanceMethod<&Plan::run>("run"), InstanceMethod<&Plan::run_here>("runHere"),
                      InstanceMethod<&Plan::run_steps_here>("runStepsHere"), InstanceMethod<&Plan::profile>("profile"),
                      InstanceMethod<&Plan::cancel>("cancel"), InstanceMethod<&Plan::dispose>("dispose")});
}

Plan::Plan(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  if (!info[0].IsObject()) throw Napi::TypeError::New(info.Env(), "Illegal constructor");
  device = Napi::Persistent(info[0].As<Napi::Object>());
}

// What runs the plan's jobs; throws for a plan that was disposed of, or whose device was.
Executor& Plan::opened(Napi::Env env) const {
  Executor* executor = Device::Unwrap(device.Value())->executor;
  if (!state || !executor) throw to_error(env, fail(Code::device, "plan: expected an open plan, it was disposed"));
  return *executor;
}

// run({ steps, maxMs, watch, stops, history }) -> Promise<{ steps, cancelled, stop, watched }>
Napi::Value Plan::run(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Executor& executor = opened(env);
  auto job = std::make_unique<RunJob>(env, steps_of(env, state, info[0]));
  job->run.plan->cancelled.store(false);
  Napi::Promise promise = job->deferred.Promise();
  executor.submit(std::move(job));
  return promise;
}

// runStepsHere(options as for run) -> what run's promise resolves to; undefined while jobs of the device are under way.
Napi::Value Plan::run_steps_here(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const Executor& executor = opened(env);
  if (!executor.idle()) return env.Undefined();
  StepsRun run = steps_of(env, state, info[0]);
  run.plan->cancelled.store(false);
  run.execute();
  check(env, run.status);
  return run.result(env);
}

// runHere(wait, watch, out) -> whether it ran: not while jobs of the device are under way. The contents of tensor
// `watch` go to `out`; both may be left out.
Napi::Value Plan::run_here(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const Executor& executor = opened(env);
  Run once;
  once.wait = info[0].IsUndefined() || info[0].ToBoolean();
  if (info[1].IsNumber()) {
    const auto i = size_t(integer(info, 1, "watch"));
    const Tensor* t = i < state->tensors.size() ? &state->tensors[i] : nullptr;
    if (!t || !t->contiguous() || (t->dtype != DType::i32 && t->dtype != DType::f32)) {
      throw Napi::TypeError::New(env,
                                 "native: expected watch to name a contiguous int32 or float32 tensor of the plan");
    }
    const size_t length =
        t->dtype == DType::i32 ? elements<int32_t>(info, 2, "out").size() : elements<float>(info, 2, "out").size();
    if (length != size_t(t->elems())) {
      throw Napi::TypeError::New(env, "native: expected out to be as long as the watched tensor");
    }
    once.watch = t;
    once.watched = reinterpret_cast<int32_t*>(bytes(info, 2, "out").data());
  }
  if (!executor.idle()) return Napi::Boolean::New(env, false);
  check(env, state->device->backend->run(state->device->handle, state->handle, once));
  return Napi::Boolean::New(env, true);
}

Napi::Value Plan::profile(const Napi::CallbackInfo& info) {
  if (!state) throw to_error(info.Env(), fail(Code::device, "plan: expected an open plan, it was disposed"));
  auto out = Napi::Float64Array::New(info.Env(), state->nodes.size());
  check(info.Env(), state->device->backend->profile(state->device->handle, state->handle, out.Data()));
  return out;
}

void Plan::cancel(const Napi::CallbackInfo&) {
  if (state) state->cancelled.store(true);
}

void Plan::dispose(const Napi::CallbackInfo&) { state.reset(); }

}  // namespace mb::binding
