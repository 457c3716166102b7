// The table of one target: every kernel of ops.def, by op number. A kernel is k_<op>; s_<op> is its scratch size and
// w_<op> its reason to refuse a node, where it has one.
#pragma once
#include <algorithm>

#include "core/sample_row.h"
#include "core/team.h"
#include "ops.h"
#include "vec.h"

// In this order: each builds on those above it.
// clang-format off
#include "kernels/channels-inl.h"
#include "kernels/elementwise-inl.h"
#include "kernels/shape-inl.h"
#include "kernels/embedding-inl.h"
#include "kernels/norm-inl.h"
#include "kernels/causal_conv-inl.h"
#include "kernels/selective_scan-inl.h"
#include "kernels/selective_scan_grad-inl.h"
#include "kernels/cross_entropy-inl.h"
#include "kernels/optimizer-inl.h"
#include "kernels/sample-inl.h"
#include "kernels/dot-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/linear-inl.h"
#include "kernels/rope-inl.h"
#include "kernels/attention-inl.h"
#include "kernels/attention_grad-inl.h"
#include "kernels/complex-inl.h"
#include "kernels/diagonal_ssm-inl.h"
#include "kernels/ssm_kernel-inl.h"
#include "kernels/fft-inl.h"
#include "kernels/long_conv-inl.h"
#include "kernels/mamba_block-inl.h"
// clang-format on

#ifdef MB_TILES
namespace mb::cpu::avx512 {
const KernelEntry* kernels();
}
#endif

namespace mb::cpu::MB_TARGET {

struct Table {
  KernelEntry at[op::count];
};

const KernelEntry* kernels() {
  static const Table table = [] {
    Table t{};
#ifdef MB_TILES
    // Compiled for avx512 already. What is not referenced here the compiler drops.
    std::copy_n(avx512::kernels(), size_t{op::count}, t.at);
#else
    t.at[op::embedding] = {k_embedding, nullptr, w_embedding};
    t.at[op::embedding_grad] = {k_embedding_grad, nullptr, w_embedding_grad};
    t.at[op::linear_grad_input] = {k_linear_grad_input, s_linear_grad_input, w_all_f32};
    t.at[op::linear_grad_weight] = {k_linear_grad_weight, s_linear_grad_weight, w_all_f32};
    t.at[op::column_sum] = {k_column_sum, nullptr, w_all_f32};
    t.at[op::rms_norm] = {k_rms_norm, nullptr, w_all_f32};
    t.at[op::rms_norm_grad] = {k_rms_norm_grad, s_norm_grad, w_all_f32};
    t.at[op::layer_norm] = {k_layer_norm, nullptr, w_all_f32};
    t.at[op::layer_norm_grad] = {k_layer_norm_grad, s_norm_grad, w_all_f32};
    t.at[op::add] = {k_add, nullptr, w_all_f32};
    t.at[op::mul] = {k_mul, nullptr, w_all_f32};
    t.at[op::scale] = {k_scale, nullptr, w_all_f32};
    t.at[op::silu] = {k_silu, nullptr, w_all_f32};
    t.at[op::silu_grad] = {k_silu_grad, nullptr, w_all_f32};
    t.at[op::swiglu] = {k_swiglu, nullptr, w_all_f32};
    t.at[op::swiglu_grad] = {k_swiglu_grad, nullptr, w_all_f32};
    t.at[op::softplus] = {k_softplus, nullptr, w_all_f32};
    t.at[op::softplus_grad] = {k_softplus_grad, nullptr, w_all_f32};
    t.at[op::neg_exp] = {k_neg_exp, nullptr, w_all_f32};
    t.at[op::copy] = {k_copy, nullptr, w_copy};
    t.at[op::all_reduce] = {k_copy, nullptr, w_copy};  // the same operands; here a device trains alone
    t.at[op::concat] = {k_concat, nullptr, w_concat};
    t.at[op::causal_conv1d] = {k_causal_conv1d, nullptr, w_causal_conv1d};
    t.at[op::causal_conv1d_grad] = {k_causal_conv1d_grad, nullptr, w_causal_conv1d_grad};
    t.at[op::selective_scan] = {k_selective_scan, nullptr, w_selective_scan};
    t.at[op::selective_scan_grad] = {k_selective_scan_grad, s_selective_scan_grad, w_selective_scan_grad};
    t.at[op::zero_order_hold] = {k_zero_order_hold, nullptr, w_ssm};
    t.at[op::zero_order_hold_grad] = {k_zero_order_hold_grad, nullptr, w_ssm};
    t.at[op::diagonal_ssm] = {k_diagonal_ssm, s_diagonal_ssm, w_diagonal_ssm};
    t.at[op::ssm_kernel] = {k_ssm_kernel, s_ssm_kernel, w_ssm};
    t.at[op::ssm_kernel_grad] = {k_ssm_kernel_grad, s_ssm_kernel_grad, w_ssm};
    t.at[op::long_conv] = {k_long_conv, s_long_conv, w_long_conv};
    t.at[op::long_conv_grad] = {k_long_conv_grad, s_long_conv_grad, w_long_conv_grad};
    t.at[op::rope] = {k_rope, s_rope, w_all_f32};
    t.at[op::rope_cache_write] = {k_rope_cache_write, s_rope_cache_write, w_rope_cache_write};
    t.at[op::attention] = {k_attention, s_attention, w_attention};
    t.at[op::attention_grad] = {k_attention_grad, s_attention_grad, w_all_f32};
    t.at[op::cache_write] = {k_cache_write, nullptr, w_cache_write};
    t.at[op::advance] = {k_advance, nullptr, w_advance};
    t.at[op::cross_entropy] = {k_cross_entropy, nullptr, w_cross_entropy};
    t.at[op::cross_entropy_grad] = {k_cross_entropy_grad, nullptr, w_cross_entropy_grad};
    t.at[op::global_norm] = {k_global_norm, s_global_norm, w_flat_f32};
    t.at[op::adamw] = {k_adamw, nullptr, w_flat_f32};
    t.at[op::sample] = {k_sample, s_sample, w_sample};
    t.at[op::quantize_rows] = {k_quantize_rows, nullptr, w_quantize_rows};
#endif
    // The ops whose products tiles can make.
    t.at[op::linear] = {k_linear, s_linear, w_linear};
    t.at[op::mamba_block] = {k_mamba_block, s_mamba_block, w_mamba_block};
    return t;
  }();
  return table.at;
}

}  // namespace mb::cpu::MB_TARGET
