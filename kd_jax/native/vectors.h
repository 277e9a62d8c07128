// Vectors of floats, and matrix products whose sums stay in registers: what the compiled layers
// share. GCC's and Clang's vector extensions: compilers split what is wider than the machine.

#ifndef KD_JAX_NATIVE_VECTORS_H_
#define KD_JAX_NATIVE_VECTORS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace kd_jax {

template <int kLanes>
struct Of {
  typedef float Register __attribute__((vector_size(kLanes * sizeof(float))));
  typedef float Memory
      __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
};
template <int kLanes>
using Register = typename Of<kLanes>::Register;

template <int kLanes>
inline Register<kLanes> Load(const float* p) {
  return *reinterpret_cast<const typename Of<kLanes>::Memory*>(p);
}
template <int kLanes>
inline void Store(float* p, Register<kLanes> v) {
  *reinterpret_cast<typename Of<kLanes>::Memory*>(p) = v;
}

// ReLU6. A NaN stays one: a broken network must not look like a quiet one.
template <int kLanes>
inline Register<kLanes> Clip(Register<kLanes> v) {
  const Register<kLanes> low = {}, high = low + 6.0f;
#ifdef __AVX512F__  // compilers make two operations of each comparison; of a NaN these give the last
  if constexpr (kLanes == 16) return _mm512_min_ps(high, _mm512_max_ps(low, v));
#endif
  v = v < low ? low : v;
  return v > high ? high : v;
}

// Parts of this thread's own memory, kept from call to call with whatever was left there. Each is
// 64-byte aligned, so that no vector crosses a cache line.
template <size_t kParts>
std::array<float*, kParts> Scratch(const int64_t (&sizes)[kParts]) {
  constexpr size_t kAlign = 16;  // floats
  static thread_local std::vector<float> memory;
  size_t total = kAlign;
  for (const int64_t size : sizes) total += (size + kAlign - 1) / kAlign * kAlign;
  if (memory.size() < total) memory.resize(total);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  float* next = memory.data() + (kAlign - address / sizeof(float) % kAlign) % kAlign;
  std::array<float*, kParts> parts;
  for (size_t i = 0; i < kParts; ++i) {
    parts[i] = next;
    next += (sizes[i] + kAlign - 1) / kAlign * kAlign;
  }
  return parts;
}

// c[kRows][kVectors * kLanes] = start + a[kRows][depth] b[depth][kVectors * kLanes].
template <int kRows, int kVectors, int kLanes, bool kClip>
inline void Block(const float* a, int64_t depth, const float* b, const float* start,
                  int64_t start_stride, float* c, int64_t c_stride) {
  Register<kLanes> sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = Load<kLanes>(start + r * start_stride + v * kLanes);
  for (int64_t k = 0; k < depth; ++k) {
    Register<kLanes> right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) right[v] = Load<kLanes>(b + (k * kVectors + v) * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] += a[r * depth + k] * right[v];
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      Store<kLanes>(c + r * c_stride + v * kLanes, kClip ? Clip<kLanes>(sum[r][v]) : sum[r][v]);
}

// The same for any number of rows. Each sum is added up in one order whatever rows it is among.
template <int kVectors, int kLanes, bool kClip = false>
void Panel(const float* a, int64_t rows, int64_t depth, const float* b, const float* start,
           int64_t start_stride, float* c, int64_t c_stride) {
#ifdef __AVX512F__
  constexpr int kRows = kVectors == 2 ? 12 : 14;  // sums that fit 32 registers
#else
  constexpr int kRows = kLanes == 8 ? 12 : kVectors == 2 ? 3 : 6;  // 16 registers of 8 lanes
#endif
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows)
    Block<kRows, kVectors, kLanes, kClip>(a + r * depth, depth, b, start + r * start_stride,
                                          start_stride, c + r * c_stride, c_stride);
  for (; r + 4 <= rows && kRows > 4; r += 4)
    Block<4, kVectors, kLanes, kClip>(a + r * depth, depth, b, start + r * start_stride,
                                      start_stride, c + r * c_stride, c_stride);
  for (; r < rows; ++r)
    Block<1, kVectors, kLanes, kClip>(a + r * depth, depth, b, start + r * start_stride,
                                      start_stride, c + r * c_stride, c_stride);
}

// A matrix of any number of columns, a multiple of 8, is worked on in panels: of 32 columns, and
// what is left in one of 16 and one of 8.
constexpr int64_t kWidest = 32;
inline int64_t PanelWidth(int64_t column, int64_t columns) {
  const int64_t left = columns - column;
  return left >= kWidest ? kWidest : left >= kWidest / 2 ? kWidest / 2 : kWidest / 4;
}

// b [depth][columns], each column times its scale (null: 1), to panels [depth][width], one after
// another: the one that begins with column c is at c * depth.
inline void Pack(const float* b, const float* scale, int64_t depth, int64_t columns, float* to) {
  constexpr int kLanes = 8;
  for (int64_t column = 0, width; column < columns; column += width) {
    width = PanelWidth(column, columns);
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t j = column; j < column + width; j += kLanes, to += kLanes) {
        const Register<kLanes> v = Load<kLanes>(b + k * columns + j);
        Store<kLanes>(to, scale ? v * Load<kLanes>(scale + j) : v);
      }
  }
}

// `Panel` of one of those widths.
template <bool kClip>
void AnyPanel(int64_t width, const float* a, int64_t rows, int64_t depth, const float* b,
              const float* start, int64_t start_stride, float* c, int64_t c_stride) {
  if (width == kWidest)
    Panel<2, 16, kClip>(a, rows, depth, b, start, start_stride, c, c_stride);
  else if (width == kWidest / 2)
    Panel<1, 16, kClip>(a, rows, depth, b, start, start_stride, c, c_stride);
  else
    Panel<1, 8, kClip>(a, rows, depth, b, start, start_stride, c, c_stride);
}

}  // namespace kd_jax

#endif  // KD_JAX_NATIVE_VECTORS_H_
