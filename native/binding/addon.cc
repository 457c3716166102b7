// What the addon exports: the op table, the backends, the Device class, what weighs tokens. Per-environment data only,
// so that it loads in any number of worker threads.
#include <napi.h>

#include "../ops.h"
#include "decode.h"
#include "device.h"
#include "token_weights.h"

namespace mb::binding {
namespace {

// [[name, outputs, inputs, attributes], ...] in op order; lists are comma-separated names, `?` on optional ones.
Napi::Value op_table(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto out = Napi::Array::New(env, op::count);
  for (uint32_t i = 0; i < op::count; i++) {
    auto row = Napi::Array::New(env, 4);
    const OpText& text = kOpTexts[i];
    uint32_t j = 0;
    for (const char* part : {text.name, text.outs, text.ins, text.attrs}) row.Set(j++, Napi::String::New(env, part));
    out.Set(i, row);
  }
  return out;
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  auto* constructors = new Constructors;
  const Napi::Function device = Device::define(env);
  constructors->device = Napi::Persistent(device);
  constructors->plan = Napi::Persistent(Plan::define(env));
  env.SetInstanceData(constructors);
  exports["Device"] = device;
  exports["opTable"] = Napi::Function::New<op_table>(env);
  exports["weighTokens"] = Napi::Function::New<weigh_tokens>(env);
  exports["abi"] = Napi::Number::New(env, kBackendAbi);
  return exports;
}

}  // namespace
}  // namespace mb::binding

static Napi::Object Init(Napi::Env env, Napi::Object exports) { return mb::binding::init(env, exports); }
NODE_API_MODULE(mambabyte, Init)
