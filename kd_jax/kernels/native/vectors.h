// Shared by the compiled layers: vectors of floats, and matrix products whose sums stay in
// registers. Written with the vector extensions of GCC and Clang. The width is that of the
// machine's vectors, because compilers split wider ones through memory, which was ten times slower.

#ifndef KD_JAX_NATIVE_VECTORS_H_
#define KD_JAX_NATIVE_VECTORS_H_

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace kd_jax {

// Floats of the widest vector, and how many vectors the registers hold.
#if defined(__AVX512F__)
constexpr int kNative = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kNative = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kNative = 4, kRegisters = 32;
#else
constexpr int kNative = 4, kRegisters = 16;
#endif
// Numbers of channels are multiples of 8 (`LANES` in __init__.py). The channels that are left after
// the widest vectors are processed in vectors of this width.
constexpr int kTail = kNative < 8 ? kNative : 8;

template <int kLanes>
struct Of {
  static_assert(kLanes <= kNative, "wider than the machine's vectors");
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

// ReLU6. A NaN stays a NaN, so that a diverged network does not look like one with zero outputs.
template <int kLanes>
inline Register<kLanes> Clip(Register<kLanes> v) {
  const Register<kLanes> low = {}, high = low + 6.0f;
#ifdef __AVX512F__  // One operation for each comparison instead of two; a NaN in v is returned.
  if constexpr (kLanes == 16) return _mm512_min_ps(high, _mm512_max_ps(low, v));
#endif
  v = v < low ? low : v;
  return v > high ? high : v;
}

// Calls `work.template operator()<lanes>(channel)` for every vector of channels.
template <typename Work>
inline void ForEachVector(int64_t channels, Work work) {
  int64_t c = 0;
  for (; c + kNative <= channels; c += kNative) work.template operator()<kNative>(c);
  for (; c < channels; c += kTail) work.template operator()<kTail>(c);
}

// Bytes of a core's second-level cache. No sum depends on it, only how much is processed at a time.
inline int64_t SecondLevelCache() {
  constexpr int64_t kDefault = 512 << 10, kLeast = 256 << 10, kMost = 2 << 20;
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (size > 0) return std::clamp(size, kLeast, kMost);
#endif
  return kDefault;
}

// Returns parts of a buffer that belongs to this thread and is reused from call to call. The
// contents are arbitrary. Each part is 64-byte aligned, so that no vector crosses a cache line.
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

// The same for any number of rows. The order of each sum does not depend on the rows around it.
template <int kVectors, int kLanes, bool kClip = false>
void Panel(const float* a, int64_t rows, int64_t depth, const float* b, const float* start,
           int64_t start_stride, float* c, int64_t c_stride) {
  // As many rows as the registers hold sums of, beside a row of b and a number of a.
  constexpr int kRows = kRegisters == 32 ? (kVectors == 2 ? 12 : 14) : (kVectors == 2 ? 6 : 12);
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

// The columns of a matrix, a multiple of 8, are divided into panels: two vectors wide, and for the
// columns that are left one vector and `kTail` wide.
constexpr int64_t kWidest = 2 * kNative;
inline int64_t PanelWidth(int64_t column, int64_t columns) {
  const int64_t left = columns - column;
  return left >= kWidest ? kWidest : left >= kNative ? kNative : kTail;
}

// Writes b [depth][columns], each column times its scale (null: 1), as panels [depth][width], one
// after another. The panel that begins with column c is at offset c * depth.
inline void Pack(const float* b, const float* scale, int64_t depth, int64_t columns, float* to) {
  for (int64_t column = 0, width; column < columns; column += width) {
    width = PanelWidth(column, columns);
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t j = column; j < column + width; j += kTail, to += kTail) {
        const Register<kTail> v = Load<kTail>(b + k * columns + j);
        Store<kTail>(to, scale ? v * Load<kTail>(scale + j) : v);
      }
  }
}

// c[rows][columns] = start + a[rows][depth] b[depth][columns], where b was written by `Pack`.
template <bool kClip>
void Multiply(const float* a, int64_t rows, int64_t depth, const float* b, int64_t columns,
              const float* start, int64_t start_stride, float* c, int64_t c_stride) {
  for (int64_t column = 0, width; column < columns; column += width) {
    width = PanelWidth(column, columns);
    const auto panel = width == kWidest   ? Panel<2, kNative, kClip>
                       : width == kNative ? Panel<1, kNative, kClip>
                                          : Panel<1, kTail, kClip>;
    panel(a, rows, depth, b + column * depth, start + column, start_stride, c + column, c_stride);
  }
}

}  // namespace kd_jax

#endif  // KD_JAX_NATIVE_VECTORS_H_
