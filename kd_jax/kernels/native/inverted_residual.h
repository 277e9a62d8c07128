// MobileNetV2's block in frozen networks on CPU: expansion, depthwise convolution and projection in
// one pass.
//
// As separate layers they write and read maps of the expanded channels, six times as large as the
// maps of the block, and that limits their speed. Here some expanded channels of some images at a
// time go through all three steps, are added to the outputs, and never leave the second-level
// cache. The frozen batch norms are scales and shifts: scales are multiplied into the weights, and
// sums start from the shifts.

#ifndef KD_JAX_NATIVE_INVERTED_RESIDUAL_H_
#define KD_JAX_NATIVE_INVERTED_RESIDUAL_H_

#include <algorithm>
#include <cstdint>

#include "vectors.h"

namespace kd_jax::inverted_residual {

constexpr int64_t kHidden = 32;  // expanded channels at a time: a multiple of all widths of panels
constexpr int64_t kPixels = 512;  // of whole images at a time; larger images go in strips
constexpr int64_t kRows = 8;  // of the input, by which a strip advances
constexpr int kSide = 3, kTaps = kSide * kSide;

struct Shape {
  int64_t images, height, width, in, hidden, out, stride;
  bool expands;  // false: the depthwise convolution is applied to the input of the block
  int64_t out_height() const { return (height + stride - 1) / stride; }
  int64_t out_width() const { return (width + stride - 1) / stride; }
};

// What is processed at a time: some whole images, or one strip of one image. Expanded rows are kept
// in a ring buffer, so that the rows that two strips share are expanded once.
struct Plan {
  int64_t images, out_rows, ring, first;  // `first` is the row at the start of the ring

  explicit Plan(const Shape& shape) {
    const int64_t pixels = shape.height * shape.width;
    if (pixels <= kPixels) {
      images = std::min(shape.images, kPixels / pixels);
      out_rows = shape.out_height(), ring = shape.height, first = 0;
    } else {
      images = 1, out_rows = kRows / shape.stride, ring = 2 * kRows;
      first = shape.stride == 1 ? 1 : 0;  // then the new rows of a strip are contiguous
    }
    if (!shape.expands) ring = shape.height, first = 0;  // the input itself has all rows
  }
  int64_t Place(int64_t row) const { return (row + ring - first) % ring; }
};

// A matrix of weights, and the scale and shift of the batch norm after it.
struct Weights {
  const float* kernel;  // [depth][columns]
  const float* scale;   // [columns]
  const float* shift;   // [columns]
};

// Depthwise convolution and clipping of rows of the ring, whose pixels have `step` floats. Writes
// [images][rows][width][channels], from row `top` of the output on. Taps are [kTaps][all channels].
template <int kWidth>
void Filter(const Shape& shape, const Plan& plan, int64_t images, int64_t top, int64_t rows,
            int64_t channels, const float* ring, int64_t step, const float* taps, const float* shift,
            const float* zeros, float* filtered) {
  const int64_t wide = shape.out_width(), row_size = shape.width * step;
  for (int64_t c = 0; c < channels; c += kWidth) {
    Register<kWidth> tap[kTaps];
    for (int i = 0; i < kTaps; ++i) tap[i] = Load<kWidth>(taps + i * shape.hidden + c);
    const Register<kWidth> start = Load<kWidth>(shift + c);
    float* to = filtered + c;
    for (int64_t line = 0; line < images * rows; ++line) {
      const int64_t image = line / rows, above = (top + line % rows) * shape.stride - 1;
      const float* from[kSide];
      for (int i = 0; i < kSide; ++i) {
        const int64_t row = above + i;
        const bool inside = row >= 0 && row < shape.height;
        from[i] = c + (inside ? ring + (image * plan.ring + plan.Place(row)) * row_size : zeros);
      }
      for (int64_t x = 0; x < wide; ++x, to += channels) {
        const int64_t left = x * shape.stride - 1;
        Register<kWidth> sum = start;
        if (left >= 0 && left + kSide <= shape.width) {
#pragma GCC unroll 3
          for (int i = 0; i < kSide; ++i)
#pragma GCC unroll 3
            for (int j = 0; j < kSide; ++j)
              sum += Load<kWidth>(from[i] + (left + j) * step) * tap[i * kSide + j];
        } else {
          for (int i = 0; i < kSide; ++i)
            for (int j = 0; j < kSide; ++j)
              if (left + j >= 0 && left + j < shape.width)
                sum += Load<kWidth>(from[i] + (left + j) * step) * tap[i * kSide + j];
        }
        Store<kWidth>(to, Clip<kWidth>(sum));
      }
    }
  }
}

// Initialises the outputs: the last shift, plus the input of the block if it has a shortcut.
inline void Start(const Shape& shape, int64_t pixels, const float* x, const float* shift, float* y) {
  const bool shortcut = shape.stride == 1 && shape.in == shape.out;
  for (int64_t p = 0; p < pixels; ++p, x += shape.in, y += shape.out)
    ForEachVector(shape.out, [&]<int kLanes>(int64_t c) {
      const Register<kLanes> start = Load<kLanes>(shift + c);
      Store<kLanes>(y + c, shortcut ? start + Load<kLanes>(x + c) : start);
    });
}

// Computes y [images, out_height, out_width, out] from x [images, height, width, in]. Kernels are
// [in, hidden], [9, hidden] and [hidden, out]; hidden and out are multiples of 8. A block without
// an expansion does not read the first kernel, and its hidden is in.
inline void Run(const Shape& shape, const float* x, const Weights& first, const Weights& middle,
                const Weights& last, float* y) {
  const int64_t pixels = shape.height * shape.width;
  const int64_t out_pixels = shape.out_height() * shape.out_width();
  const Plan plan(shape);
  const int64_t zero_size = shape.width * std::max(kHidden, shape.in);
  const auto [expanding, taps, projecting, expanded, filtered, zeros] =
      Scratch({shape.in * shape.hidden, kTaps * shape.hidden, shape.hidden * shape.out,
               shape.expands ? plan.images * plan.ring * shape.width * kHidden : 0,
               plan.images * plan.out_rows * shape.out_width() * kHidden, zero_size});
  std::fill(zeros, zeros + zero_size, 0.0f);
  if (shape.expands) Pack(first.kernel, first.scale, shape.in, shape.hidden, expanding);
  for (int i = 0; i < kTaps; ++i)
    for (int64_t c = 0; c < shape.hidden; ++c)
      taps[i * shape.hidden + c] = middle.kernel[i * shape.hidden + c] * middle.scale[c];
  for (int64_t c = 0; c < shape.hidden; c += kHidden)
    Pack(last.kernel + c * shape.out, last.scale, std::min(kHidden, shape.hidden - c), shape.out,
         projecting + c * shape.out);

  for (int64_t image = 0; image < shape.images; image += plan.images) {
    const int64_t images = std::min(plan.images, shape.images - image);
    const float* from = x + image * pixels * shape.in;
    float* to = y + image * out_pixels * shape.out;
    Start(shape, images * out_pixels, from, last.shift, to);
    for (int64_t c = 0; c < shape.hidden; c += kHidden) {
      const int64_t width = std::min(kHidden, shape.hidden - c);
      int64_t done = 0;  // rows that are expanded already
      for (int64_t top = 0; top < shape.out_height(); top += plan.out_rows) {
        const int64_t rows = std::min(plan.out_rows, shape.out_height() - top);
        const int64_t needed = std::min(shape.height, (top + rows - 1) * shape.stride + kSide - 1);
        // At most to the end of the ring; for several images the ring is the whole map.
        while (shape.expands && done < needed) {
          const int64_t place = plan.Place(done);
          const int64_t count = std::min(needed - done, plan.ring - place);
          Multiply<true>(from + done * shape.width * shape.in, images * count * shape.width,
                         shape.in, expanding + c * shape.in, width, first.shift + c, 0,
                         expanded + place * shape.width * width, width);
          done += count;
        }
        const auto filter = width % kNative == 0 ? Filter<kNative> : Filter<kTail>;
        filter(shape, plan, images, top, rows, width, shape.expands ? expanded : from + c,
               shape.expands ? width : shape.in, taps + c, middle.shift + c, zeros, filtered);
        float* outputs = to + top * shape.out_width() * shape.out;
        Multiply<false>(filtered, images * rows * shape.out_width(), width,
                        projecting + c * shape.out, shape.out, outputs, shape.out, outputs,
                        shape.out);
      }
    }
  }
}

}  // namespace kd_jax::inverted_residual

#endif  // KD_JAX_NATIVE_INVERTED_RESIDUAL_H_
