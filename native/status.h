// How native code reports failure: a code and a message, never an exception across a border, never a print or an abort.
#pragma once
#include <cstdarg>
#include <cstdint>
#include <cstdio>

namespace mb {

enum class Code : int32_t { ok, out_of_memory, unsupported, bad_plan, io, device, cancelled };

struct Status {
  Code code = Code::ok;
  char message[1000] = "";
  bool ok() const { return code == Code::ok; }
};

// Written by hand rather than as a template so that every message is one printf format, checked by the compiler.
__attribute__((format(printf, 2, 3))) inline Status fail(Code code, const char* format, ...) {
  Status s;
  s.code = code;
  va_list args;
  va_start(args, format);
  std::vsnprintf(s.message, sizeof s.message, format, args);
  va_end(args);
  return s;
}

}  // namespace mb

#define MB_TRY(expr)                                   \
  do {                                                 \
    if (::mb::Status s_ = (expr); !s_.ok()) return s_; \
  } while (0)
