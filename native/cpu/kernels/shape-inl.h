// Data movement: copy: y <- x between f32, f64, bf16 and f16; concat: y(R, sum d_i) <- parts (R, d_i);
// quantize_rows: q(M,K) i8, scale(M) <- x(M,K): scale = max|row| / 127, q = x / scale to nearest even, both in f32.
#pragma once

namespace mb::cpu::MB_TARGET {

MB_INLINE bool is_float(DType t) { return t == DType::f32 || t == DType::f64 || t == DType::bf16 || t == DType::f16; }

static const char* w_copy(const Node& node) {
  if (!is_float(node.in(0).dtype)) return "copy: expected x to be f32, f64, bf16 or f16";
  return is_float(node.out(0).dtype) ? nullptr : "copy: expected the result to be f32, f64, bf16 or f16";
}

// Stored forms of a number, as types of their own, and how W of them are read and written.
struct Bf16 {
  uint16_t bits;
  MB_INLINE V read(const uint16_t* p) { return load_bf16(p); }
  MB_INLINE V read_n(const uint16_t* p, int n) { return load_bf16_n(p, n); }
  MB_INLINE void write(uint16_t* p, V x) { store_bf16(p, x); }
};
struct F16 {
  uint16_t bits;
  MB_INLINE V read(const uint16_t* p) { return load_f16(p); }
  MB_INLINE V read_n(const uint16_t* p, int n) { return load_f16_n(p, n); }
  MB_INLINE void write(uint16_t* p, V x) { store_f16(p, x); }
};

template <class Stored>
MB_INLINE V load_part(const Stored* p, int lanes) {
  const uint16_t* bits = reinterpret_cast<const uint16_t*>(p);
  return lanes == W ? Stored::read(bits) : Stored::read_n(bits, lanes);
}
template <class Stored>
MB_INLINE void store_part(Stored* p, V x, int lanes) {
  uint16_t bits[W];
  Stored::write(bits, x);
  memcpy(p, bits, sizeof(Stored) * static_cast<size_t>(lanes));
}

// What a cache of keys and values may be kept as.
MB_INLINE bool is_cached(DType t) { return t == DType::f32 || t == DType::bf16 || t == DType::f16; }

// Calls fn with a number of that form.
template <class F>
MB_INLINE void with_cached(DType t, F fn) {
  if (t == DType::bf16) {
    fn(Bf16{});
  } else if (t == DType::f16) {
    fn(F16{});
  } else {
    fn(0.0f);
  }
}

MB_INLINE double wide(float x) { return static_cast<double>(x); }
MB_INLINE double wide(double x) { return x; }
MB_INLINE double wide(Bf16 x) { return static_cast<double>(float_from_bf16(x.bits)); }
MB_INLINE double wide(F16 x) {
  float value[W];
  store(value, load_f16_n(&x.bits, 1));
  return static_cast<double>(value[0]);
}
MB_INLINE void narrow(float* to, double x) { *to = static_cast<float>(x); }
MB_INLINE void narrow(double* to, double x) { *to = x; }
MB_INLINE void narrow(Bf16* to, double x) { to->bits = bf16_from_float(static_cast<float>(x)); }
MB_INLINE void narrow(F16* to, double x) { store_part(to, set1(static_cast<float>(x)), 1); }

template <class To, class From>
static void copy_row(To* to, const void* from, int64_t n) {
  for (int64_t i = 0; i < n; i++) narrow(to + i, wide(static_cast<const From*>(from)[i]));
}

template <class To>
static void copy_row_to(void* to, const void* from, DType dtype, int64_t n) {
  if (dtype == DType::f32) {
    copy_row<To, float>(static_cast<To*>(to), from, n);
  } else if (dtype == DType::f64) {
    copy_row<To, double>(static_cast<To*>(to), from, n);
  } else if (dtype == DType::bf16) {
    copy_row<To, Bf16>(static_cast<To*>(to), from, n);
  } else {
    copy_row<To, F16>(static_cast<To*>(to), from, n);
  }
}

static void k_copy(const Node& node, const Team& team) {
  const Tensor &y = node.out(at::copy::out::y), &x = node.in(at::copy::in::x);
  const int64_t n = y.cols(), to_size = dtype_size(y.dtype), from_size = dtype_size(x.dtype);
  const Team::Range rows = team.share(y.rows());
  for (int64_t r = rows.begin; r < rows.end; r++) {
    char* to = y.ptr<char>() + r * y.row_stride * to_size;
    const char* from = x.ptr<char>() + r * x.row_stride * from_size;
    if (y.dtype == x.dtype) {
      memmove(to, from, static_cast<size_t>(n * to_size));
    } else if (y.dtype == DType::f64) {
      copy_row_to<double>(to, from, x.dtype, n);
    } else {
      with_cached(y.dtype, [&](auto stored) { copy_row_to<decltype(stored)>(to, from, x.dtype, n); });
    }
  }
}

static const char* w_quantize_rows(const Node& node) {
  return is_float(node.in(0).dtype) ? nullptr : "quantize_rows: expected x to be f32, f64, bf16 or f16";
}

// A row that holds an infinity or NaN has scale NaN and zeros.
template <class From>
static float quantize_row(int8_t* q, const void* from, int64_t n) {
  const From* x = static_cast<const From*>(from);
  float top = 0.0f;
  bool finite = true;
  for (int64_t i = 0; i < n; i++) {
    const float size = __builtin_fabsf(static_cast<float>(wide(x[i])));
    finite = finite && size < __builtin_inff();
    if (size > top) top = size;
  }
  const float scale = finite ? top / 127.0f : __builtin_nanf("");
  for (int64_t i = 0; i < n; i++) {
    float ratio = scale > 0 ? static_cast<float>(wide(x[i])) / scale : 0.0f;
    ratio = ratio > 127.0f ? 127.0f : ratio < -127.0f ? -127.0f : ratio;
    q[i] = static_cast<int8_t>(__builtin_rintf(ratio));
  }
  return scale;
}

static void k_quantize_rows(const Node& node, const Team& team) {
  const Tensor &q = node.out(at::quantize_rows::out::q), &x = node.in(at::quantize_rows::in::x);
  float* scale = node.out(at::quantize_rows::out::scale).ptr<float>();
  const Team::Range rows = team.share(q.rows());
  for (int64_t r = rows.begin; r < rows.end; r++) {
    int8_t* to = q.row<int8_t>(r);
    const char* from = x.ptr<char>() + r * x.row_stride * dtype_size(x.dtype);
    if (x.dtype == DType::f32) {
      scale[r] = quantize_row<float>(to, from, x.cols());
    } else if (x.dtype == DType::f64) {
      scale[r] = quantize_row<double>(to, from, x.cols());
    } else if (x.dtype == DType::bf16) {
      scale[r] = quantize_row<Bf16>(to, from, x.cols());
    } else {
      scale[r] = quantize_row<F16>(to, from, x.cols());
    }
  }
}

static const char* w_concat(const Node& node) {
  for (int i = 0; i < node.n_in; i++) {
    if (node.in(i).dtype != node.out(0).dtype) return "concat: expected all parts to have the dtype of the result";
  }
  return nullptr;
}

// Bytes [begin, end) of row r of the result.
static void concat_part(const Node& node, int64_t r, int64_t begin, int64_t end) {
  const Tensor& y = node.out(at::concat::out::y);
  const int64_t size = dtype_size(y.dtype);
  char* to = y.ptr<char>() + r * y.row_stride * size;
  int64_t at = 0;  // where the part begins in the row
  for (int i = 0; i < node.n_in && at < end; i++) {
    const Tensor& part = node.in(i);
    const int64_t bytes = part.cols() * size, from = begin > at ? begin - at : 0, past = end - at;
    const int64_t n = (past < bytes ? past : bytes) - from;
    if (n > 0) memcpy(to + at + from, part.ptr<char>() + r * part.row_stride * size + from, static_cast<size_t>(n));
    at += bytes;
  }
}

// Rows may be few and long, as when a state is put together, so threads share pieces of them.
static void k_concat(const Node& node, const Team& team) {
  constexpr int64_t kPiece = 16384;
  const Tensor& y = node.out(at::concat::out::y);
  const int64_t bytes = y.cols() * dtype_size(y.dtype), pieces = (bytes + kPiece - 1) / kPiece;
  const Team::Range tasks = team.share(y.rows() * pieces);
  for (int64_t t = tasks.begin; t < tasks.end;) {
    const int64_t r = t / pieces, first = t % pieces;
    const int64_t count = tasks.end - t < pieces - first ? tasks.end - t : pieces - first;
    const int64_t end = (first + count) * kPiece;
    concat_part(node, r, first * kPiece, end < bytes ? end : bytes);
    t += count;
  }
}

}  // namespace mb::cpu::MB_TARGET
