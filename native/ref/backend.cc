// The reference backend: plain loops on one thread, in double. Slow, obvious, and what every other is held to.
#include "backend.h"

#include "host/host.h"

namespace mb {
namespace ref {
const KernelEntry* kernels();
}

const Backend* ref_backend() {
  static const Backend backend{
      kBackendAbi,
      "ref",
      true,
      [](const DeviceOptions&, void** device) { return host::open(ref::kernels(), "ref", "scalar", 1, device); },
      host::close,
      host::info,
      host::alloc,
      host::free,
      host::write,
      host::read,
      host::why_not,
      host::compile,
      host::run,
      host::profile,
      host::drop,
      nullptr,
      nullptr,
  };
  return &backend;
}

}  // namespace mb
