// Intel's matrix tiles (AMX), on top of the avx512 target for products of several rows with bf16 or i8 weights.
#pragma once

namespace mb::cpu {

// Whether the processor has AMX with bf16 and the system lets this process use it. Asked once.
bool amx_usable();

}  // namespace mb::cpu
