// Depthwise convolutions of networks in training on CPU, and both of their gradients.
//
// Each is one pass over the maps, with channels in vectors. There are only a few multiply-adds for
// every number that is read, so memory should be the limit. XLA's loops copy the input to pad it,
// spread the gradient of a strided convolution over zeros, and keep the kernel's sums in memory.

#ifndef KD_JAX_NATIVE_DEPTHWISE_H_
#define KD_JAX_NATIVE_DEPTHWISE_H_

#include <algorithm>
#include <cstdint>

#include "vectors.h"

namespace kd_jax::depthwise {

constexpr int64_t kBlockBytes = 32 << 10;  // of the rows that are read together for all channels

// The input x is [images, height, width, channels]; y is the output or its gradient.
struct Shape {
  int64_t images, height, width, channels, out_height, out_width, rows, columns, stride;
  int64_t above, before;  // padding
  int64_t in_row() const { return width * channels; }
  int64_t out_row() const { return out_width * channels; }
  int64_t taps() const { return rows * columns; }
};

// Calls `work(offset in x, offset in the kernel)` for every tap of an output that meets a pixel.
template <typename Work>
inline void ForEachTap(const Shape& shape, int64_t row, int64_t column, Work work) {
  for (int64_t i = 0; i < shape.rows; ++i)
    for (int64_t j = 0; j < shape.columns; ++j) {
      const int64_t down = row * shape.stride - shape.above + i;
      const int64_t right = column * shape.stride - shape.before + j;
      if (down >= 0 && down < shape.height && right >= 0 && right < shape.width)
        work(down * shape.in_row() + right * shape.channels,
             (i * shape.columns + j) * shape.channels);
    }
}

struct Range {
  int64_t first, last;
};

// Returns the outputs whose windows contain the pixel at `place` of the padded input.
inline Range OutputsOf(int64_t place, int64_t taps, int64_t outputs, int64_t stride) {
  return {std::max<int64_t>(0, (place - taps + stride) / stride),
          std::min(outputs, place / stride + 1)};
}

// Calls `work.template operator()<lanes>(channel, first row, end row)` for every block of rows and
// every vector of channels. Before that it prefetches the rows of `from` [rows][row_size] that the
// next block reads, because the vectors of a channel are too far apart for the processor's own
// prefetcher. Nothing at or after `end_of_all` is prefetched.
template <typename Work>
void ForEachBlock(int64_t rows, int64_t row_size, int64_t channels, const float* from,
                  const float* end_of_all, Work work) {
  const int64_t row_bytes = row_size * int64_t{sizeof(float)};
  const int64_t block = std::max<int64_t>(1, kBlockBytes / row_bytes);
  for (int64_t row = 0; row < rows; row += block) {
    const int64_t end = std::min(rows, row + block);
    const float* last = std::min(from + (end + block) * row_size, end_of_all);
    for (const float* next = from + end * row_size; next < last; next += 16)
      __builtin_prefetch(next);
    ForEachVector(channels, [&]<int kLanes>(int64_t c) {
      work.template operator()<kLanes>(c, row, end);
    });
  }
}

// Calls `pixel(column, at)` for every output of a row; `at(i, j)` points to the channels that its
// tap (i, j) reads, which are zeros outside of the image. Taps are unrolled, so that their values
// stay in registers.
template <int kSide, typename Pixel>
inline void ForEachPixel(const Shape& shape, const float* x, const float* zeros, int64_t row,
                         int64_t c, Pixel pixel) {
  const float* line[kSide];
  for (int i = 0; i < kSide; ++i) {
    const int64_t at = row * shape.stride - shape.above + i;
    line[i] = (at >= 0 && at < shape.height ? x + at * shape.in_row() : zeros) + c;
  }
  for (int64_t column = 0; column < shape.out_width; ++column) {
    const int64_t left = column * shape.stride - shape.before, first = left * shape.channels;
    if (left >= 0 && left + kSide <= shape.width)
      pixel(column, [&](int i, int j) { return line[i] + first + j * shape.channels; });
    else
      pixel(column, [&](int i, int j) {
        const bool inside = left + j >= 0 && left + j < shape.width;
        return inside ? line[i] + first + j * shape.channels : zeros + c;
      });
  }
}

// The output of one image. The kernel is [rows * columns][channels].
template <int kSide>  // of a square kernel; 0 for any other kernel
struct Forward {
  const Shape& shape;
  const float *x, *kernel, *zeros;
  float* y;

  template <int kLanes>
  void operator()(int64_t c, int64_t row, int64_t end) const {
    if constexpr (kSide != 0) {
      Register<kLanes> tap[kSide * kSide];
#pragma GCC unroll 25
      for (int i = 0; i < kSide * kSide; ++i) tap[i] = Load<kLanes>(kernel + i * shape.channels + c);
      for (; row < end; ++row) {
        float* to = y + row * shape.out_row() + c;
        ForEachPixel<kSide>(shape, x, zeros, row, c, [&](int64_t column, auto at) {
          Register<kLanes> sum = {};
#pragma GCC unroll 5
          for (int i = 0; i < kSide; ++i)
#pragma GCC unroll 5
            for (int j = 0; j < kSide; ++j) sum += Load<kLanes>(at(i, j)) * tap[i * kSide + j];
          Store<kLanes>(to + column * shape.channels, sum);
        });
      }
    } else {
      for (; row < end; ++row)
        for (int64_t column = 0; column < shape.out_width; ++column) {
          Register<kLanes> sum = {};
          ForEachTap(shape, row, column, [&](int64_t from, int64_t tap) {
            sum += Load<kLanes>(x + from + c) * Load<kLanes>(kernel + tap + c);
          });
          Store<kLanes>(y + row * shape.out_row() + column * shape.channels + c, sum);
        }
    }
  }
};

// The input's gradient of one image: every pixel sums over the outputs whose windows contain it.
template <int kStride>  // 0 for any stride; division by a constant is much faster
struct InputGradient {
  const Shape& shape;
  const float *grad, *kernel;
  float* to;

  template <int kLanes>
  void operator()(int64_t c, int64_t row, int64_t end) const {
    const int64_t stride = kStride ? kStride : shape.stride;
    for (; row < end; ++row) {
      float* line = to + row * shape.in_row() + c;
      // Output o reads this row with tap `low - o * stride`.
      const int64_t low = row + shape.above;
      const Range high = OutputsOf(low, shape.rows, shape.out_height, stride);
      for (int64_t column = 0; column < shape.width; ++column, line += shape.channels) {
        const int64_t left = column + shape.before;
        const Range wide = OutputsOf(left, shape.columns, shape.out_width, stride);
        Register<kLanes> sum = {};
        for (int64_t i = high.first; i < high.last; ++i)
          for (int64_t j = wide.first; j < wide.last; ++j) {
            const int64_t tap = (low - i * stride) * shape.columns + left - j * stride;
            sum += Load<kLanes>(grad + i * shape.out_row() + j * shape.channels + c) *
                   Load<kLanes>(kernel + tap * shape.channels + c);
          }
        Store<kLanes>(line, sum);
      }
    }
  }
};

// Adds the kernel's gradient of one image to `sums` [taps][channels].
template <int kSide>
struct KernelGradient {
  // Number of rows of taps whose sums are in registers together; each such group reads the maps
  // once.
  static constexpr int kGroup =
      kSide * kSide + 4 <= kRegisters ? kSide : std::max(1, (kRegisters - 4) / std::max(1, kSide));
  const Shape& shape;
  const float *x, *grad, *zeros;
  float* sums;

  template <int kLanes>
  void operator()(int64_t c, int64_t row, int64_t end) const {
    if constexpr (kSide != 0) {
      AddRows<kLanes, 0>(c, row, end);
    } else {
      for (; row < end; ++row)
        for (int64_t column = 0; column < shape.out_width; ++column) {
          const Register<kLanes> here =
              Load<kLanes>(grad + row * shape.out_row() + column * shape.channels + c);
          ForEachTap(shape, row, column, [&](int64_t from, int64_t tap) {
            float* sum = sums + tap + c;
            Store<kLanes>(sum, Load<kLanes>(sum) + Load<kLanes>(x + from + c) * here);
          });
        }
    }
  }

  // Adds rows [kFirst, kSide) of the taps.
  template <int kLanes, int kFirst>
  void AddRows(int64_t c, int64_t first, int64_t end) const {
    constexpr int kRows = std::min(kGroup, kSide - kFirst);
    float* to = sums + kFirst * kSide * shape.channels + c;
    Register<kLanes> sum[kRows * kSide];
#pragma GCC unroll 25
    for (int i = 0; i < kRows * kSide; ++i) sum[i] = Load<kLanes>(to + i * shape.channels);
    for (int64_t row = first; row < end; ++row) {
      const float* from = grad + row * shape.out_row() + c;
      ForEachPixel<kSide>(shape, x, zeros, row, c, [&](int64_t column, auto at) {
        const Register<kLanes> here = Load<kLanes>(from + column * shape.channels);
#pragma GCC unroll 5
        for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 5
          for (int j = 0; j < kSide; ++j)
            sum[i * kSide + j] += Load<kLanes>(at(kFirst + i, j)) * here;
      });
    }
#pragma GCC unroll 25
    for (int i = 0; i < kRows * kSide; ++i) Store<kLanes>(to + i * shape.channels, sum[i]);
    if constexpr (kFirst + kRows < kSide) AddRows<kLanes, kFirst + kRows>(c, first, end);
  }
};

// Calls `work.template operator()<side>()`, with side 0 for kernels without a specialised loop.
template <typename Work>
inline void ForSide(const Shape& shape, Work work) {
  if (shape.rows == 3 && shape.columns == 3)
    work.template operator()<3>();
  else if (shape.rows == 5 && shape.columns == 5)
    work.template operator()<5>();
  else
    work.template operator()<0>();
}

inline void Convolve(const Shape& shape, const float* x, const float* kernel, const float* zeros,
                     float* y) {
  for (int64_t image = 0; image < shape.images; ++image) {
    const float* from = x + image * shape.height * shape.in_row();
    float* to = y + image * shape.out_height * shape.out_row();
    ForSide(shape, [&]<int kSide>() {
      ForEachBlock(shape.out_height, shape.in_row() * shape.stride, shape.channels, from,
                   x + shape.images * shape.height * shape.in_row(),
                   Forward<kSide>{shape, from, kernel, zeros, to});
    });
  }
}

// Computes y from x [images, height, width, channels] and the kernel [rows, columns, channels].
inline void RunForward(const Shape& shape, const float* x, const float* kernel, float* y) {
  const auto [zeros] = Scratch({shape.in_row()});
  std::fill(zeros, zeros + shape.in_row(), 0.0f);
  Convolve(shape, x, kernel, zeros, y);
}

// Computes the gradient of x from the gradient of y and the kernel.
inline void RunInputGradient(const Shape& shape, const float* grad, const float* kernel,
                             float* to) {
  if (shape.stride == 1) {  // also a convolution, with the kernel reversed
    const Shape reversed_shape{shape.images, shape.out_height, shape.out_width, shape.channels,
                               shape.height, shape.width, shape.rows, shape.columns, 1,
                               shape.rows - 1 - shape.above, shape.columns - 1 - shape.before};
    const auto [reversed, zeros] =
        Scratch({shape.taps() * shape.channels, reversed_shape.in_row()});
    std::fill(zeros, zeros + reversed_shape.in_row(), 0.0f);
    for (int64_t i = shape.taps(); i-- > 0; kernel += shape.channels)
      std::copy(kernel, kernel + shape.channels, reversed + i * shape.channels);
    Convolve(reversed_shape, grad, reversed, zeros, to);
    return;
  }
  for (int64_t image = 0; image < shape.images; ++image) {
    const float* from = grad + image * shape.out_height * shape.out_row();
    float* line = to + image * shape.height * shape.in_row();
    const auto run = [&](auto work) {
      ForEachBlock(shape.height, shape.in_row(), shape.channels, line, line, work);
    };
    if (shape.stride == 2)
      run(InputGradient<2>{shape, from, kernel, line});
    else
      run(InputGradient<0>{shape, from, kernel, line});
  }
}

// Computes the gradient of the kernel [rows, columns, channels] from x and the gradient of y. Sums
// of each image are computed separately and then added, because many small numbers added to a large
// one would lose digits.
inline void RunKernelGradient(const Shape& shape, const float* x, const float* grad,
                              float* total) {
  const int64_t size = shape.taps() * shape.channels;
  const auto parts = Scratch({size, shape.in_row()});  // Clang < 16 cannot capture a binding
  float *const sums = parts[0], *const zeros = parts[1];
  std::fill(zeros, zeros + shape.in_row(), 0.0f);
  std::fill(total, total + size, 0.0f);
  for (int64_t image = 0; image < shape.images; ++image) {
    const float* from = x + image * shape.height * shape.in_row();
    const float* line = grad + image * shape.out_height * shape.out_row();
    std::fill(sums, sums + size, 0.0f);
    ForSide(shape, [&]<int kSide>() {
      ForEachBlock(shape.out_height, shape.in_row() * shape.stride, shape.channels, from,
                   x + shape.images * shape.height * shape.in_row(),
                   KernelGradient<kSide>{shape, from, line, zeros, sums});
    });
    for (int64_t i = 0; i < size; ++i) total[i] += sums[i];
  }
}

}  // namespace kd_jax::depthwise

#endif  // KD_JAX_NATIVE_DEPTHWISE_H_
