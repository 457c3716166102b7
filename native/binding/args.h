// Readers for arguments of the binding. lib/ is the only caller and checks what users can get wrong; these protect
// memory.
#pragma once
#include <napi.h>

#include <cmath>
#include <span>
#include <string>

#include "../status.h"

namespace mb::binding {

// The JS error of a failed Status: an Error with a stable `code` that lib/ turns into its typed errors.
inline Napi::Error to_error(Napi::Env env, const Status& status) {
  static constexpr const char* kCodes[] = {"OK",    "MB_OUT_OF_MEMORY", "MB_UNSUPPORTED", "MB_BAD_PLAN",
                                           "MB_IO", "MB_DEVICE",        "MB_CANCELLED"};
  Napi::Error error = Napi::Error::New(env, status.message);
  error.Set("code", kCodes[int(status.code)]);
  return error;
}

inline void check(Napi::Env env, const Status& status) {
  if (!status.ok()) throw to_error(env, status);
}

inline int64_t integer(const Napi::CallbackInfo& info, int i, const char* what) {
  const double v = info[i].IsNumber() ? info[i].As<Napi::Number>().DoubleValue() : NAN;
  if (!(v >= 0 && v <= 9007199254740991.0 && v == std::floor(v))) {
    throw Napi::TypeError::New(info.Env(), std::string("native: expected ") + what + " to be a non-negative integer");
  }
  return int64_t(v);
}

// The bytes of a typed array or DataView.
inline std::span<uint8_t> bytes(const Napi::CallbackInfo& info, int i, const char* what) {
  if (info[i].IsTypedArray()) {
    auto a = info[i].As<Napi::TypedArray>();
    return {static_cast<uint8_t*>(a.ArrayBuffer().Data()) + a.ByteOffset(), a.ByteLength()};
  }
  throw Napi::TypeError::New(info.Env(), std::string("native: expected ") + what + " to be a typed array");
}

// The class in JS of arrays of T.
template <typename T>
struct ArrayClass;
template <>
struct ArrayClass<float> {
  static constexpr auto type = napi_float32_array;
  static constexpr const char* name = "a Float32Array";
};
template <>
struct ArrayClass<double> {
  static constexpr auto type = napi_float64_array;
  static constexpr const char* name = "a Float64Array";
};
template <>
struct ArrayClass<int32_t> {
  static constexpr auto type = napi_int32_array;
  static constexpr const char* name = "an Int32Array";
};

// The elements of a typed array of T.
template <typename T>
std::span<T> elements(const Napi::CallbackInfo& info, int i, const char* what) {
  if (info[i].IsTypedArray()) {
    auto a = info[i].As<Napi::TypedArrayOf<T>>();
    if (a.TypedArrayType() == ArrayClass<T>::type) return {a.Data(), a.ElementLength()};
  }
  throw Napi::TypeError::New(info.Env(), std::string("native: expected ") + what + " to be " + ArrayClass<T>::name);
}

}  // namespace mb::binding
