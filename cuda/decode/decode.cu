#include "decode.h"

namespace mb::cuda {

bool decode_matches(const Node*, size_t, const Props&) { return false; }
Status decode_create(const Node*, size_t, const Props&, Decode**) { return fail(Code::unsupported, "decode: no plan"); }
Status decode_run(Decode*, cudaStream_t, Run&) { return fail(Code::unsupported, "decode: no plan"); }
void decode_destroy(Decode*) {}

}  // namespace mb::cuda
