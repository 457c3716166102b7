// The JS classes Device and Plan over a Backend.
#pragma once
#include <napi.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "../backend.h"
#include "executor.h"

namespace mb::binding {

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
  void* mapping = nullptr;  // file mapping, when data lies in one
  size_t mapping_bytes = 0;
};

// A device and what lives on it. Plans and running jobs share ownership, so memory outlives whatever still uses it.
struct DeviceState {
  const Backend* backend = nullptr;
  void* handle = nullptr;
  std::unordered_map<int64_t, Buffer> buffers;
  int64_t next_id = 1;
  int64_t external_bytes = 0;  // reported to V8

  ~DeviceState();
  void release(Buffer& b);
};

class Device : public Napi::ObjectWrap<Device> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit Device(const Napi::CallbackInfo& info);
  ~Device() override;

  std::shared_ptr<DeviceState> state;
  Executor* executor = nullptr;

 private:
  DeviceState& open(Napi::Env env);
  Buffer& buffer(const Napi::CallbackInfo& info, int64_t id);
  bool on_heap(const Buffer& b) const;
  int64_t adopt(Napi::Env env, Buffer b);

  Napi::Value alloc(const Napi::CallbackInfo& info);         // (bytes) -> id
  Napi::Value map(const Napi::CallbackInfo& info);           // (path, offset, bytes) -> id
  void free(const Napi::CallbackInfo& info);                 // (id)
  void write(const Napi::CallbackInfo& info);                // (id, offset, view)
  void read(const Napi::CallbackInfo& info);                 // (id, offset, view)
  Napi::Value compile(const Napi::CallbackInfo& info);       // (tensors, nodes, attrs, scopes) -> Plan
  Napi::Value info(const Napi::CallbackInfo& info);          // () -> JSON text
  Napi::Value new_group_id(const Napi::CallbackInfo& info);  // () -> Uint8Array
  void join_group(const Napi::CallbackInfo& info);           // (id, rank, world)
  void dispose(const Napi::CallbackInfo& info);
};

// Everything the nodes of a compiled plan point into; stays put until the plan is dropped.
struct PlanState {
  std::shared_ptr<DeviceState> device;
  std::vector<Tensor> tensors;
  std::vector<Tensor> operands;
  std::vector<Node> nodes;
  std::vector<double> attrs;
  std::vector<std::string> scopes;
  void* handle = nullptr;
  std::atomic<bool> cancelled{false};  // polled between steps; cleared when a run is submitted
  ~PlanState();
};

class Plan : public Napi::ObjectWrap<Plan> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit Plan(const Napi::CallbackInfo& info);

  std::shared_ptr<PlanState> state;
  Napi::ObjectReference device;  // keeps the JS Device, and so its executor, alive

 private:
  Executor& opened(Napi::Env env) const;
  Napi::Value run(const Napi::CallbackInfo& info);       // (options) -> Promise
  Napi::Value run_here(const Napi::CallbackInfo& info);  // () -> whether it ran
  Napi::Value run_steps_here(const Napi::CallbackInfo& info);
  Napi::Value profile(const Napi::CallbackInfo& info);  // () -> Float64Array of seconds
  void cancel(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info);
};

struct Constructors {
  Napi::FunctionReference device, plan;
};

}  // namespace mb::binding
