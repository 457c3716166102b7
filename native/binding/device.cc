#include "device.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "args.h"
#include "backends.h"
#include "decode.h"

namespace mb::binding {
namespace {

// Maps a byte range of a file read-only. The mapping starts at the page below `offset`.
Status map_file(const std::string& path, int64_t offset, int64_t bytes, Buffer* out) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fail(Code::io, "map: cannot open %s: %s", path.c_str(), std::strerror(errno));
  struct stat st;
  if (fstat(fd, &st) != 0 || st.st_size < offset + bytes) {
    ::close(fd);
    return fail(Code::io, "map: expected %s to hold %lld bytes from %lld, it is shorter", path.c_str(),
                (long long)bytes, (long long)offset);
  }
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t start = offset / page * page;
  const size_t length = size_t(offset + bytes - start);
  void* p = mmap(nullptr, length, PROT_READ, MAP_SHARED, fd, start);
  ::close(fd);
  if (p == MAP_FAILED) return fail(Code::io, "map: cannot map %s: %s", path.c_str(), std::strerror(errno));
  madvise(p, length, MADV_WILLNEED);
  *out = {static_cast<char*>(p) + (offset - start), size_t(bytes), p, length};
  return {};
}

// Copies what is mapped into memory of a device that cannot read the host's, and lets go of the file.
Status to_device(const DeviceState& device, Buffer* b) {
  Buffer copy;
  copy.bytes = b->bytes;
  Status status = device.backend->alloc(device.handle, copy.bytes, &copy.data);
  if (status.ok()) {
    status = device.backend->write(device.handle, copy.data, b->data, b->bytes);
    if (!status.ok()) device.backend->free(device.handle, copy.data, copy.bytes);
  }
  munmap(b->mapping, b->mapping_bytes);
  if (status.ok()) *b = copy;
  return status;
}

Status no_groups(const DeviceState& d) {
  return fail(Code::unsupported, "device: expected a backend that trains on several devices, got %s", d.backend->name);
}

}  // namespace

DeviceState::~DeviceState() {
  for (auto& [id, b] : buffers) release(b);
  if (handle) backend->close(handle);
}

void DeviceState::release(Buffer& b) {
  if (b.mapping) {
    munmap(b.mapping, b.mapping_bytes);
  } else if (b.data) {
    backend->free(handle, b.data, b.bytes);
  }
}

Napi::Function Device::define(Napi::Env env) {
  return DefineClass(
      env, "Device",
      {InstanceMethod<&Device::alloc>("alloc"), InstanceMethod<&Device::map>("map"),
       InstanceMethod<&Device::free>("free"), InstanceMethod<&Device::write>("write"),
       InstanceMethod<&Device::read>("read"), InstanceMethod<&Device::compile>("compile"),
       InstanceMethod<&Device::new_group_id>("newGroupId"), InstanceMethod<&Device::join_group>("joinGroup"),
       InstanceMethod<&Device::info>("info"), InstanceMethod<&Device::dispose>("dispose")});
}

// new Device(backend, index, threads, target)
Device::Device(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  const std::string name = info[0].As<Napi::String>();
  const Backend* backend = nullptr;
  check(info.Env(), find_backend(name, &backend));
  DeviceOptions options;
  options.index = int32_t(integer(info, 1, "index"));
  options.threads = int32_t(integer(info, 2, "threads"));
  const std::string target = info[3].IsString() ? info[3].As<Napi::String>().Utf8Value() : "";
  if (!target.empty()) options.target = target.c_str();
  auto opened = std::make_shared<DeviceState>();
  opened->backend = backend;
  check(info.Env(), backend->open(options, &opened->handle));
  state = std::move(opened);
  Executor::create(info.Env(), &executor);
}

Device::~Device() {
  if (executor) executor->shutdown();
}

DeviceState& Device::open(Napi::Env env) {
  if (!state) throw to_error(env, fail(Code::device, "device: expected an open device, it was disposed"));
  return *state;
}

Buffer& Device::buffer(const Napi::CallbackInfo& info, int64_t id) {
  auto& buffers = open(info.Env()).buffers;
  auto it = buffers.find(id);
  if (it == buffers.end()) throw Napi::RangeError::New(info.Env(), "native: no such buffer");
  return it->second;
}

// Whether a buffer is memory that V8 should know of.
bool Device::on_heap(const Buffer& b) const { return !b.mapping && state->backend->host_memory; }

int64_t Device::adopt(Napi::Env env, Buffer b) {
  const int64_t id = state->next_id++;
  state->buffers.emplace(id, b);
  // Mapped files are the page cache's memory, not this process's; nor is a GPU's.
  if (on_heap(b)) state->external_bytes = Napi::MemoryManagement::AdjustExternalMemory(env, int64_t(b.bytes));
  return id;
}

Napi::Value Device::alloc(const Napi::CallbackInfo& info) {
  DeviceState& d = open(info.Env());
  Buffer b;
  b.bytes = size_t(integer(info, 0, "bytes"));
  check(info.Env(), d.backend->alloc(d.handle, b.bytes, &b.data));
  return Napi::Number::New(info.Env(), double(adopt(info.Env(), b)));
}

Napi::Value Device::map(const Napi::CallbackInfo& info) {
  open(info.Env());
  Buffer b;
  check(info.Env(), map_file(info[0].As<Napi::String>(), integer(info, 1, "offset"), integer(info, 2, "bytes"), &b));
  if (!state->backend->host_memory) check(info.Env(), to_device(*state, &b));
  return Napi::Number::New(info.Env(), double(adopt(info.Env(), b)));
}

void Device::free(const Napi::CallbackInfo& info) {
  const int64_t id = integer(info, 0, "buffer id");
  Buffer& b = buffer(info, id);
  if (on_heap(b)) Napi::MemoryManagement::AdjustExternalMemory(info.Env(), -int64_t(b.bytes));
  state->release(b);
  state->buffers.erase(id);
}

void Device::write(const Napi::CallbackInfo& info) {
  Buffer& b = buffer(info, integer(info, 0, "buffer id"));
  const auto offset = size_t(integer(info, 1, "offset"));
  const auto from = bytes(info, 2, "view");
  if (offset > b.bytes || from.size() > b.bytes - offset || b.mapping) {
    throw Napi::RangeError::New(info.Env(), "native: write past the end of a buffer, or to a mapped file");
  }
  check(info.Env(),
        state->backend->write(state->handle, static_cast<char*>(b.data) + offset, from.data(), from.size()));
}

void Device::read(const Napi::CallbackInfo& info) {
  Buffer& b = buffer(info, integer(info, 0, "buffer id"));
  const auto offset = size_t(integer(info, 1, "offset"));
  const auto to = bytes(info, 2, "view");
  if (offset > b.bytes || to.size() > b.bytes - offset) {
    throw Napi::RangeError::New(info.Env(), "native: read past the end of a buffer");
  }
  check(info.Env(), state->backend->read(state->handle, static_cast<char*>(b.data) + offset, to.data(), to.size()));
}

Napi::Value Device::compile(const Napi::CallbackInfo& info) {
  DeviceState& d = open(info.Env());
  auto plan = std::make_shared<PlanState>();
  plan->device = state;
  check(info.Env(), decode(info, d, plan.get()));
  std::string refused;
  int n_refused = 0;
  for (const Node& node : plan->nodes) {
    const char* why = d.backend->why_not(d.handle, node);
    if (why && n_refused++ < 8) refused += std::string(refused.empty() ? "" : "; ") + node.scope + ": " + why;
  }
  if (n_refused) {
    check(info.Env(), fail(Code::unsupported, "plan: %d node%s cannot run on %s: %s", n_refused,
                           n_refused > 1 ? "s" : "", d.backend->name, refused.c_str()));
  }
  check(info.Env(), d.backend->compile(d.handle, plan->nodes.data(), plan->nodes.size(), &plan->handle));
  Napi::Object object = info.Env().GetInstanceData<Constructors>()->plan.New({info.This()});
  Plan::Unwrap(object)->state = std::move(plan);
  return object;
}

Napi::Value Device::info(const Napi::CallbackInfo& info) {
  DeviceState& d = open(info.Env());
  std::string text(4096, '\0');
  text.resize(std::min(text.size(), d.backend->info(d.handle, text.data(), text.size())));
  return Napi::String::New(info.Env(), text);
}

Napi::Value Device::new_group_id(const Napi::CallbackInfo& info) {
  DeviceState& d = open(info.Env());
  if (!d.backend->new_group_id) check(info.Env(), no_groups(d));
  auto id = Napi::Uint8Array::New(info.Env(), kGroupIdBytes);
  check(info.Env(), d.backend->new_group_id(d.handle, reinterpret_cast<char*>(id.Data())));
  return id;
}

void Device::join_group(const Napi::CallbackInfo& info) {
  DeviceState& d = open(info.Env());
  if (!d.backend->join_group) check(info.Env(), no_groups(d));
  const auto id = bytes(info, 0, "group id");
  const int64_t rank = integer(info, 1, "rank"), world = integer(info, 2, "world");
  if (id.size() != kGroupIdBytes || rank < 0 || rank >= world) {
    throw Napi::RangeError::New(info.Env(), "native: expected a group id and a rank below world");
  }
  check(info.Env(),
        d.backend->join_group(d.handle, reinterpret_cast<const char*>(id.data()), int32_t(rank), int32_t(world)));
}

void Device::dispose(const Napi::CallbackInfo& info) {
  if (!state) return;
  int64_t bytes = 0;
  for (const auto& [id, b] : state->buffers) bytes += on_heap(b) ? int64_t(b.bytes) : 0;
  Napi::MemoryManagement::AdjustExternalMemory(info.Env(), -bytes);
  if (executor) {
    executor->cancel();
    executor->shutdown();
  }
  state.reset();  // a running job still holds it; memory goes back when the job ends
}

}  // namespace mb::binding
