// Rows of a table: y[r] = table[ids[r]], and its gradient dtable[ids[r]] += dy[r].
// y(R,D); table(V,D) f32 or bf16; ids(R) u8 or i32. An id outside 0 .. V-1 (the host refuses them) gives a row of zeros
// and no gradient.
#pragma once

namespace mb::cpu::MB_TARGET {

MB_INLINE int64_t id_at(const Tensor& ids, int64_t r) {
  return ids.dtype == DType::u8 ? static_cast<int64_t>(ids.ptr<uint8_t>()[r])
                                : static_cast<int64_t>(ids.ptr<int32_t>()[r]);
}

static const char* why_not_ids(const Tensor& ids) {
  if (ids.dtype != DType::u8 && ids.dtype != DType::i32) return "expected ids or targets to be u8 or i32";
  return ids.rank > 1 && !ids.contiguous() ? "expected ids or targets to lie without gaps" : nullptr;
}

static const char* w_embedding(const Node& node) {
  const DType dtype = node.in(at::embedding::in::table).dtype;
  if (dtype != DType::f32 && dtype != DType::bf16) return "embedding: expected the table to be f32 or bf16";
  return why_not_ids(node.in(at::embedding::in::ids));
}

static void k_embedding(const Node& node, const Team& team) {
  const Tensor &y = node.out(at::embedding::out::y), &table = node.in(at::embedding::in::table);
  const Tensor& ids = node.in(at::embedding::in::ids);
  const int64_t D = y.cols(), classes = table.rows();
  const Team::Range rows = team.share(y.rows());
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t id = id_at(ids, r);
    float* to = y.row<float>(r);
    if (id < 0 || id >= classes) {
      memset(to, 0, sizeof(float) * static_cast<size_t>(D));
    } else if (table.dtype == DType::f32) {
      memcpy(to, table.row<float>(id), sizeof(float) * static_cast<size_t>(D));
    } else {
      const uint16_t* from = table.row<uint16_t>(id);
      int64_t d = 0;
      for (; d + W <= D; d += W) store(to + d, load_bf16(from + d));
      if (d < D) store_n(to + d, load_bf16_n(from + d, static_cast<int>(D - d)), static_cast<int>(D - d));
    }
  }
}

static const char* w_embedding_grad(const Node& node) {
  if (node.out(0).dtype != DType::f32) return "embedding_grad: expected an f32 gradient";
  return why_not_ids(node.in(at::embedding_grad::in::ids));
}

constexpr int64_t kEmbeddingColumns = 64;

// A task owns 64 columns and adds the rows in order, so that no two threads add to one number.
static void k_embedding_grad(const Node& node, const Team& team) {
  const Tensor &dtable = node.out(at::embedding_grad::out::dtable), &dy = node.in(at::embedding_grad::in::dy);
  const Tensor& ids = node.in(at::embedding_grad::in::ids);
  const int64_t D = dtable.cols(), classes = dtable.rows(), R = dy.rows();
  const Team::Range blocks = team.share((D + kEmbeddingColumns - 1) / kEmbeddingColumns);
  for (int64_t block = blocks.begin; block < blocks.end; block++) {
    const int64_t first = block * kEmbeddingColumns, left = D - first;
    const int64_t n = left < kEmbeddingColumns ? left : kEmbeddingColumns;
    if (node.attr(at::embedding_grad::attr::accumulate) == 0) {
      for (int64_t v = 0; v < classes; v++) {
        memset(dtable.row<float>(v) + first, 0, sizeof(float) * static_cast<size_t>(n));
      }
    }
    for (int64_t r = 0; r < R; r++) {
      const int64_t id = id_at(ids, r);
      if (id < 0 || id >= classes) continue;
      float* to = dtable.row<float>(id) + first;
      const float* from = dy.row<float>(r) + first;
      for (int64_t d = 0; d < n; d++) to[d] += from[d];
    }
  }
}

}  // namespace mb::cpu::MB_TARGET
