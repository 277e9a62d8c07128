// The first convolution of frozen networks on CPU: patches of a few channels times a matrix.
//
// Three channels do not fill a vector, so the convolution is a matrix product over patches. The
// patches of some pixels at a time are written and read in the first-level cache. A row of a patch
// is contiguous in memory.

#ifndef KD_JAX_NATIVE_STEM_H_
#define KD_JAX_NATIVE_STEM_H_

#include <algorithm>
#include <cstdint>

#include "vectors.h"

namespace kd_jax::stem {

constexpr int kRun = kNative;     // floats that are copied at a time
constexpr int64_t kPixels = 168;  // at a time: a multiple of 6, 12 and 14 (kRows in vectors.h)

struct Shape {
  int64_t images, height, width, in, out_height, out_width, out, side, stride;
  int64_t border() const { return (side - 1) / 2; }
  int64_t padded_row() const { return (width + 2 * border()) * in; }
  int64_t padded_size() const { return (height + 2 * border()) * padded_row(); }
  int64_t depth() const { return side * side * in; }
  int64_t pixels() const { return out_height * out_width; }
};

// Copies one image into the middle of an image of zeros.
inline void Pad(const Shape& shape, const float* x, float* padded) {
  const int64_t row = shape.width * shape.in;
  float* to = padded + shape.border() * (shape.padded_row() + shape.in);
  for (int64_t y = 0; y < shape.height; ++y, x += row, to += shape.padded_row())
    std::copy(x, x + row, to);
}

// Writes the patches [count][depth] of output pixels [first, first + count). Copies whole vectors:
// the surplus is overwritten by the next copy, and there is room for it after the last one.
inline void LayOut(const Shape& shape, const float* padded, int64_t first, int64_t count, float* to) {
  const int64_t run = shape.side * shape.in;
  for (int64_t p = first; p < first + count; ++p) {
    const int64_t row = p / shape.out_width * shape.stride;
    const int64_t column = p % shape.out_width * shape.stride;
    const float* from = padded + row * shape.padded_row() + column * shape.in;
    for (int64_t i = 0; i < shape.side; ++i, from += shape.padded_row(), to += run)
      for (int64_t k = 0; k < run; k += kRun) Store<kRun>(to + k, Load<kRun>(from + k));
  }
}

// Computes y [images, out_height, out_width, out] from x [images, height, width, in] and the kernel
// [side, side, in, out]; `out` is a multiple of 8.
inline void Run(const Shape& shape, const float* x, const float* kernel, float* y) {
  const auto [padded, patches, panels, zeros] =
      Scratch({shape.padded_size() + kRun, kPixels * shape.depth() + kRun,
               shape.depth() * shape.out, shape.out});
  std::fill(padded, padded + shape.padded_size() + kRun, 0.0f);
  std::fill(zeros, zeros + shape.out, 0.0f);
  Pack(kernel, nullptr, shape.depth(), shape.out, panels);
  for (int64_t image = 0; image < shape.images; ++image) {
    Pad(shape, x + image * shape.height * shape.width * shape.in, padded);
    float* outputs = y + image * shape.pixels() * shape.out;
    for (int64_t first = 0; first < shape.pixels(); first += kPixels) {
      const int64_t count = std::min(kPixels, shape.pixels() - first);
      LayOut(shape, padded, first, count, patches);
      Multiply<false>(patches, count, shape.depth(), panels, shape.out, zeros, 0,
                      outputs + first * shape.out, shape.out);
    }
  }
}

}  // namespace kd_jax::stem

#endif  // KD_JAX_NATIVE_STEM_H_
