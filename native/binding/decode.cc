#include "decode.h"

#include <cstring>
#include <span>

#include "../ops.h"

namespace mb::binding {

const OpText kOpTexts[] = {
#define MB_OPT(name) name ?
#define MB_TEXT(...) #__VA_ARGS__
#define MB_OP(name, outs, ins, attrs) {#name, MB_TEXT(outs), MB_TEXT(ins), MB_TEXT(attrs)},
#include "../ops.def"
#undef MB_OP
#undef MB_TEXT
#undef MB_OPT
};

namespace {

// Checks that every required operand of a list is there. A list of one name ending in `_` takes any number.
Status check_operands(const Node& node, const char* names, const Tensor* operands, int given, const char* kind) {
  const size_t length = std::strlen(names);
  if (length && names[length - 1] == '_') {
    for (int i = 0; i < given; i++) {
      if (!operands[i]) return fail(Code::bad_plan, "plan: %s: expected %s %d to be given", node.scope, kind, i);
    }
    return {};
  }
  int i = 0;
  for (const char* at = names; *at; i++) {
    const char* end = std::strchr(at, ',');
    if (!end) end = names + length;
    const bool optional = end[-1] == '?';
    if (!optional && (i >= given || !operands[i])) {
      return fail(Code::bad_plan, "plan: %s: expected %s %.*s to be given", node.scope, kind, int(end - at), at);
    }
    at = *end ? end + 1 : end;
    while (*at == ' ') at++;
  }
  if (given > i) return fail(Code::bad_plan, "plan: %s: expected %d %ss, got %d", node.scope, i, kind, given);
  return {};
}

constexpr int kTensorFields = 9;

Status decode_tensor(const double* f, const DeviceState& device, Tensor* t) {
  const auto it = device.buffers.find(int64_t(f[0]));
  if (it == device.buffers.end()) return fail(Code::bad_plan, "plan: a tensor names a buffer that does not exist");
  const Buffer& b = it->second;
  const int dtype = int(f[2]), rank = int(f[3]);
  if (dtype < 0 || dtype > int(DType::f16) || rank < 0 || rank > kMaxRank) {
    return fail(Code::bad_plan, "plan: a tensor has dtype %d and rank %d", dtype, rank);
  }
  t->dtype = DType(dtype);
  t->rank = rank;
  double elems = 1;
  for (int i = 0; i < kMaxRank; i++) {
    if (!(f[4 + i] >= 0 && f[4 + i] < 9e15)) return fail(Code::bad_plan, "plan: a tensor has a negative size");
    t->shape[i] = i < rank ? int64_t(f[4 + i]) : 1;
    elems *= double(t->shape[i]);
  }
  t->row_stride = int64_t(f[8]);
  if (t->row_stride < t->cols()) return fail(Code::bad_plan, "plan: a tensor's row stride is smaller than its rows");
  const double last = elems == 0 ? 0 : double(t->rows() - 1) * double(t->row_stride) + double(t->cols());
  const double end = f[1] + last * double(dtype_size(t->dtype));
  if (!(f[1] >= 0 && end <= double(b.bytes))) return fail(Code::bad_plan, "plan: a tensor reaches past its buffer");
  t->data = static_cast<char*>(b.data) + int64_t(f[1]);
  return {};
}

}  // namespace

Status decode(const Napi::CallbackInfo& info, DeviceState& device, PlanState* plan) {
  const auto tensors = info[0].As<Napi::Float64Array>();
  const auto codes = info[1].As<Napi::Int32Array>();
  const auto attrs = info[2].As<Napi::Float64Array>();
  const auto scopes = info[3].As<Napi::Array>();

  plan->tensors.resize(tensors.ElementLength() / kTensorFields);
  for (size_t i = 0; i < plan->tensors.size(); i++) {
    MB_TRY(decode_tensor(tensors.Data() + i * kTensorFields, device, &plan->tensors[i]));
  }
  plan->attrs.assign(attrs.Data(), attrs.Data() + attrs.ElementLength());
  for (uint32_t i = 0; i < scopes.Length(); i++) plan->scopes.push_back(scopes.Get(i).As<Napi::String>());

  const std::span<const int32_t> code(codes.Data(), codes.ElementLength());
  plan->operands.reserve(code.size());  // never grows past this, so nodes may point into it
  size_t at = 0, attr = 0;
  while (at < code.size()) {
    if (code.size() - at < 5) return fail(Code::bad_plan, "plan: truncated node list");
    Node n;
    n.op = code[at];
    const int scope = code[at + 1];
    n.n_out = code[at + 2];
    n.n_in = code[at + 3];
    n.n_attr = code[at + 4];
    at += 5;
    if (n.op < 0 || n.op >= op::count || scope < 0 || size_t(scope) >= plan->scopes.size() || n.n_out < 0 ||
        n.n_in < 0 || n.n_attr < 0 || code.size() - at < size_t(n.n_out) + size_t(n.n_in) ||
        plan->attrs.size() - attr < size_t(n.n_attr)) {
      return fail(Code::bad_plan, "plan: a node is malformed");
    }
    const size_t first = plan->operands.size();
    for (int i = 0; i < n.n_out + n.n_in; i++) {
      const int32_t t = code[at++];
      if (t >= 0 && size_t(t) >= plan->tensors.size()) return fail(Code::bad_plan, "plan: a node names no tensor");
      plan->operands.push_back(t < 0 ? Tensor{} : plan->tensors[size_t(t)]);
    }
    n.outs = plan->operands.data() + first;
    n.ins = n.outs + n.n_out;
    n.attrs = plan->attrs.data() + attr;
    n.scope = plan->scopes[size_t(scope)].c_str();
    attr += size_t(n.n_attr);
    MB_TRY(check_operands(n, kOpTexts[n.op].outs, n.outs, n.n_out, "output"));
    MB_TRY(check_operands(n, kOpTexts[n.op].ins, n.ins, n.n_in, "input"));
    plan->nodes.push_back(n);
  }
  return {};
}

}  // namespace mb::binding
