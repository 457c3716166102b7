// The fast CPU backend: vector kernels for the best instruction set found, or the one asked for.
#include "../backend.h"

#include "../host/host.h"
#include "dispatch.h"

namespace mb {
namespace {

Status open(const DeviceOptions& options, void** device) {
  const char* target = nullptr;
  Status status;
  const KernelEntry* table = cpu::select(options.target, &target, &status);
  if (!table) return status;
  return host::open(table, "cpu", target, options.threads, device);
}

}  // namespace

const Backend* cpu_backend() {
  static const Backend backend{
      kBackendAbi, "cpu",         true,        open,       host::close,   host::info,
      host::alloc, host::free,    host::write, host::read, host::why_not, host::compile,
      host::run,   host::profile, host::drop,  nullptr,    nullptr,
  };
  return &backend;
}

}  // namespace mb
