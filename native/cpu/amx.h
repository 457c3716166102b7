// Intel's matrix tiles (AMX), an extra inside the avx512 target for products of many rows with bf16 or i8 weights.
#pragma once

namespace mb::cpu {

// Whether the processor has AMX with bf16, the system lets this process use it, and MB_AMX=0 is not set. Asked once.
bool amx_enabled();

}  // namespace mb::cpu
