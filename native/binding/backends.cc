#include "backends.h"

#include <dlfcn.h>

#include <cstdlib>

namespace mb::binding {
namespace {

// The folder that this addon was loaded from.
std::string addon_folder() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&find_backend), &info) || !info.dli_fname) return ".";
  const std::string file = info.dli_fname;
  const size_t slash = file.rfind('/');
  return slash == std::string::npos ? "." : file.substr(0, slash);
}

Status open_cuda(const Backend** out) {
  const char* set = std::getenv("MAMBABYTE_CUDA_LIB");
  const std::string path = set && *set ? set : addon_folder() + "/libmambabyte_cuda.so";
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return fail(Code::device, "cuda: the backend library cannot be loaded: %s", dlerror());
  using Get = const Backend* (*)(uint32_t);
  const auto get = reinterpret_cast<Get>(dlsym(library, "mb_backend"));
  *out = get ? get(kBackendAbi) : nullptr;
  if (!*out) {
    return fail(Code::device, "cuda: %s was built for another version of mambabyte. Build both together, or reinstall.",
                path.c_str());
  }
  return {};
}

}  // namespace

Status find_backend(const std::string& name, const Backend** out) {
  for (const Backend* b : {ref_backend(), cpu_backend()}) {
    if (name == b->name) {
      *out = b;
      return {};
    }
  }
  if (name == "cuda") {
    // Opened again after a failure, since the environment may name another file by then; dlopen counts references.
    static const Backend* cuda = nullptr;
    if (!cuda) MB_TRY(open_cuda(&cuda));
    *out = cuda;
    return {};
  }
  return fail(Code::device, "native: expected a backend to be 'ref', 'cpu' or 'cuda', got '%s'", name.c_str());
}

}  // namespace mb::binding
