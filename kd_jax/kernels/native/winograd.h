// 3x3 convolutions of frozen networks on CPU: Winograd's F(4x4, 3x3). The mathematics are in
// kernels/winograd.py.
//
// Sixteen outputs of a 3x3 filter need 144 products. Computed from 36 sums of a 6x6 tile of inputs
// and 36 sums of the taps, they need 36. Some tiles are processed at a time, so that the sums stay
// in the second-level cache: sums of the inputs, 36 small matrix products, sums of the products.

#ifndef KD_JAX_NATIVE_WINOGRAD_H_
#define KD_JAX_NATIVE_WINOGRAD_H_

#include <algorithm>
#include <cstdint>

#include "vectors.h"

namespace kd_jax::winograd {

constexpr int kOutputs = 4, kInputs = 6, kSums = kInputs * kInputs;
constexpr int64_t kFewestTiles = 48;  // at a time: with fewer tiles, weights are read too often

// The six sums of six inputs.
template <typename Vector>
inline void InputSums(const Vector d[kInputs], Vector s[kInputs]) {
  const Vector even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1];
  const Vector far = d[4] - d[2], near = 2.0f * (d[3] - d[1]);
  s[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
  s[1] = even + odd;
  s[2] = even - odd;
  s[3] = far + near;
  s[4] = far - near;
  s[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

// The four outputs from six products.
template <typename Vector>
inline void OutputSums(const Vector m[kInputs], Vector y[kOutputs]) {
  const Vector plus1 = m[1] + m[2], minus1 = m[1] - m[2];
  const Vector plus2 = m[3] + m[4], minus2 = m[3] - m[4];
  y[0] = m[0] + plus1 + plus2;
  y[1] = minus1 + 2.0f * minus2;
  y[2] = plus1 + 4.0f * plus2;
  y[3] = minus1 + 8.0f * minus2 + m[5];
}

struct Shape {
  int64_t images, height, width, in, out;
  int64_t tiles_high() const { return height / kOutputs; }
  int64_t tiles_wide() const { return width / kOutputs; }
  int64_t tiles() const { return images * tiles_high() * tiles_wide(); }
};

struct Place {
  int64_t image, row, column;
};

inline Place PlaceOf(const Shape& shape, int64_t tile) {
  const int64_t per_image = shape.tiles_high() * shape.tiles_wide();
  const int64_t within = tile % per_image;
  return {tile / per_image, within / shape.tiles_wide() * kOutputs,
          within % shape.tiles_wide() * kOutputs};
}

// Computes the sums [kSums][count][in] of tiles [first, first + count) of x.
inline void TransformInputs(const Shape& shape, const float* x, const float* zeros, int64_t first,
                     int64_t count, float* sums) {
  for (int64_t t = 0; t < count; ++t) {
    const Place at = PlaceOf(shape, first + t);
    const float* from[kInputs][kInputs];
    for (int i = 0; i < kInputs; ++i) {
      const int64_t row = at.row + i - 1;
      const bool inside = row >= 0 && row < shape.height;
      const float* line = x + (at.image * shape.height + row) * shape.width * shape.in;
      for (int j = 0; j < kInputs; ++j) {
        const int64_t column = at.column + j - 1;
        const bool in_image = inside && column >= 0 && column < shape.width;
        from[i][j] = in_image ? line + column * shape.in : zeros;
      }
    }
    ForEachVector(shape.in, [&]<int kLanes>(int64_t c) {
      using Vector = Register<kLanes>;
      Vector half[kInputs][kInputs];
      for (int j = 0; j < kInputs; ++j) {
        Vector d[kInputs], s[kInputs];
        for (int i = 0; i < kInputs; ++i) d[i] = Load<kLanes>(from[i][j] + c);
        InputSums(d, s);
        for (int i = 0; i < kInputs; ++i) half[i][j] = s[i];
      }
      for (int i = 0; i < kInputs; ++i) {
        Vector s[kInputs];
        InputSums(half[i], s);
        for (int j = 0; j < kInputs; ++j)
          Store<kLanes>(sums + ((i * kInputs + j) * count + t) * shape.in + c, s[j]);
      }
    });
  }
}

// Computes the outputs y from products [kSums][count][out].
inline void TransformOutputs(const Shape& shape, const float* products, int64_t first, int64_t count,
                      float* y) {
  for (int64_t t = 0; t < count; ++t) {
    const Place at = PlaceOf(shape, first + t);
    float* to = y + ((at.image * shape.height + at.row) * shape.width + at.column) * shape.out;
    ForEachVector(shape.out, [&]<int kLanes>(int64_t c) {
      using Vector = Register<kLanes>;
      Vector half[kOutputs][kInputs];
      for (int j = 0; j < kInputs; ++j) {
        Vector m[kInputs], s[kOutputs];
        for (int i = 0; i < kInputs; ++i)
          m[i] = Load<kLanes>(products + ((i * kInputs + j) * count + t) * shape.out + c);
        OutputSums(m, s);
        for (int i = 0; i < kOutputs; ++i) half[i][j] = s[i];
      }
      for (int i = 0; i < kOutputs; ++i) {
        Vector s[kOutputs];
        OutputSums(half[i], s);
        for (int j = 0; j < kOutputs; ++j)
          Store<kLanes>(to + (i * shape.width + j) * shape.out + c, s[j]);
      }
    });
  }
}

inline void ConvolveTiles(const Shape& shape, const float* x, const float* kernel, int64_t first,
                   int64_t count, float* y) {
  const int64_t zero_size = std::max(shape.in, shape.out);
  const auto [sums, products, zeros] =
      Scratch({kSums * count * shape.in, kSums * count * shape.out, zero_size});
  std::fill(zeros, zeros + zero_size, 0.0f);
  TransformInputs(shape, x, zeros, first, count, sums);
  for (int s = 0; s < kSums; ++s) {
    Multiply<false>(sums + s * count * shape.in, count, shape.in, kernel + s * shape.in * shape.out,
                    shape.out, zeros, 0, products + s * count * shape.out, shape.out);
  }
  TransformOutputs(shape, products, first, count, y);
}

// Computes y [images, height, width, out] from x [images, height, width, in] and the sums of the
// kernel [kSums][in][out], written by `Pack`.
inline void Run(const Shape& shape, const float* x, const float* kernel, float* y) {
  const int64_t tile_bytes = kSums * (shape.in + shape.out) * int64_t{sizeof(float)};
  // Five eighths of the cache. The rest is for weights, inputs and outputs.
  int64_t count = std::max(SecondLevelCache() * 5 / 8 / tile_bytes, kFewestTiles);
  count = count / 12 * 12;
  for (int64_t first = 0; first < shape.tiles(); first += count)
    ConvolveTiles(shape, x, kernel, first, std::min(count, shape.tiles() - first), y);
}

}  // namespace kd_jax::winograd

#endif  // KD_JAX_NATIVE_WINOGRAD_H_
