// Depthwise convolutions of networks in training on CPUs, and both of their gradients.
//
// Each is one pass over the maps, channels in vectors: a few multiply-adds for every number that is
// read, so memory should be the limit. XLA's loops copy the input to pad it, spread the gradient of
// a strided convolution over zeros, and keep the kernel's sums in memory.

#include <algorithm>
#include <cstdint>

#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace kd_jax {
namespace {

typedef ffi::Buffer<ffi::F32> Floats;

constexpr int64_t kBlockBytes = 32 << 10;  // of rows that all channels pass over together

// The input is x [images, height, width, channels], the output (or its gradient) y.
struct Shape {
  int64_t images, height, width, channels, out_height, out_width, rows, columns, stride;
  int64_t above, before;  // padding
  int64_t in_row() const { return width * channels; }
  int64_t out_row() const { return out_width * channels; }
  int64_t taps() const { return rows * columns; }
};

Shape ShapeOf(const Floats& x, ffi::Span<const int64_t> y, int64_t rows, int64_t columns,
              int64_t stride, int64_t above, int64_t before) {
  const auto size = x.dimensions();
  return {size[0], size[1], size[2], size[3], y[1], y[2], rows, columns, stride, above, before};
}

// Calls `work(place in x, place in the kernel)` for every tap of an output that meets a pixel.
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

// Outputs that see a pixel at `place` of the padded input.
inline Range SeenBy(int64_t place, int64_t taps, int64_t outputs, int64_t stride) {
  return {std::max<int64_t>(0, (place - taps + stride) / stride),
          std::min(outputs, place / stride + 1)};
}

// Calls `work.template operator()<lanes>(channel, first row, last row)` for every block of rows and
// every vector of channels.
// Meanwhile what the next block reads of `from` [rows][row_size] and beyond, is fetched: vectors of
// channels lie too far apart for the processor to foresee them.
template <typename Work>
void ForEachBlock(int64_t rows, int64_t row_size, int64_t channels, const float* from,
                  const float* end_of_all, Work work) {
  const int64_t row_bytes = row_size * int64_t{sizeof(float)};
  const int64_t some = std::max<int64_t>(1, kBlockBytes / row_bytes);
  for (int64_t row = 0; row < rows; row += some) {
    const int64_t end = std::min(rows, row + some);
    const float* last = std::min(from + (end + some) * row_size, end_of_all);
    for (const float* next = from + end * row_size; next < last; next += 16)
      __builtin_prefetch(next);
    int64_t c = 0;
    for (; c + 16 <= channels; c += 16) work.template operator()<16>(c, row, end);
    for (; c < channels; c += 8) work.template operator()<8>(c, row, end);
  }
}

// Calls `pixel(column, at)` for every output of a row, where `at(i, j)` is what its tap (i, j) sees:
// a row of zeros outside. Taps are unrolled, so that what belongs to each stays in a register.
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

// One image. The kernel is [rows * columns][channels].
template <int kSide>  // of a square kernel; 0 for any other
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

// One image: every pixel of the input gathers from the outputs that it was seen by.
template <int kStride>  // 0 for any: division by a constant is much faster
struct InputGradient {
  const Shape& shape;
  const float *grad, *kernel;
  float* to;

  template <int kLanes>
  void operator()(int64_t c, int64_t row, int64_t end) const {
    const int64_t stride = kStride ? kStride : shape.stride;
    for (; row < end; ++row) {
      float* line = to + row * shape.in_row() + c;
      // Output o saw it with tap `low - o * stride`, so outputs [first, last) did.
      const int64_t low = row + shape.above;
      const Range high = SeenBy(low, shape.rows, shape.out_height, stride);
      for (int64_t column = 0; column < shape.width; ++column, line += shape.channels) {
        const int64_t left = column + shape.before;
        const Range wide = SeenBy(left, shape.columns, shape.out_width, stride);
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

// One image, added to `sums` [taps][channels].
template <int kSide>
struct KernelGradient {
  const Shape& shape;
  const float *x, *grad, *zeros;
  float* sums;

  template <int kLanes>
  void operator()(int64_t c, int64_t row, int64_t end) const {
    if constexpr (kSide != 0) {
      Register<kLanes> sum[kSide * kSide];
#pragma GCC unroll 25
      for (int i = 0; i < kSide * kSide; ++i) sum[i] = Load<kLanes>(sums + i * shape.channels + c);
      for (; row < end; ++row) {
        const float* from = grad + row * shape.out_row() + c;
        ForEachPixel<kSide>(shape, x, zeros, row, c, [&](int64_t column, auto at) {
          const Register<kLanes> here = Load<kLanes>(from + column * shape.channels);
#pragma GCC unroll 5
          for (int i = 0; i < kSide; ++i)
#pragma GCC unroll 5
            for (int j = 0; j < kSide; ++j) sum[i * kSide + j] += Load<kLanes>(at(i, j)) * here;
        });
      }
#pragma GCC unroll 25
      for (int i = 0; i < kSide * kSide; ++i) Store<kLanes>(sums + i * shape.channels + c, sum[i]);
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
};

void Convolve(const Shape& shape, const float* x, const float* kernel, const float* zeros,
              float* y) {
  for (int64_t image = 0; image < shape.images; ++image) {
    const float* from = x + image * shape.height * shape.in_row();
    float* to = y + image * shape.out_height * shape.out_row();
    const auto run = [&](auto work) {
      ForEachBlock(shape.out_height, shape.in_row() * shape.stride, shape.channels, from,
                   x + shape.images * shape.height * shape.in_row(), work);
    };
    if (shape.rows == 3 && shape.columns == 3)
      run(Forward<3>{shape, from, kernel, zeros, to});
    else if (shape.rows == 5 && shape.columns == 5)
      run(Forward<5>{shape, from, kernel, zeros, to});
    else
      run(Forward<0>{shape, from, kernel, zeros, to});
  }
}

// x [n, H, W, channels] and kernel [rows, columns, channels] to y.
ffi::Error RunForward(Floats x, Floats kernel, int64_t stride, int64_t above, int64_t before,
                      ffi::Result<Floats> y) {
  const auto taps = kernel.dimensions();
  const Shape shape = ShapeOf(x, y->dimensions(), taps[0], taps[1], stride, above, before);
  const auto [zeros] = Scratch({shape.in_row()});
  std::fill(zeros, zeros + shape.in_row(), 0.0f);
  Convolve(shape, x.typed_data(), kernel.typed_data(), zeros, y->typed_data());
  return ffi::Error::Success();
}

// The gradient of y and the kernel to the gradient of x.
ffi::Error RunInputGradient(Floats grad, Floats kernel, int64_t stride, int64_t above,
                            int64_t before, ffi::Result<Floats> to) {
  const auto taps = kernel.dimensions();
  if (stride == 1) {  // a convolution too, with the kernel turned
    const Shape shape = ShapeOf(grad, to->dimensions(), taps[0], taps[1], 1, taps[0] - 1 - above,
                                taps[1] - 1 - before);
    const auto [turned, zeros] = Scratch({shape.taps() * shape.channels, shape.in_row()});
    std::fill(zeros, zeros + shape.in_row(), 0.0f);
    const float* from = kernel.typed_data();
    for (int64_t i = shape.taps(); i-- > 0; from += shape.channels)
      std::copy(from, from + shape.channels, turned + i * shape.channels);
    Convolve(shape, grad.typed_data(), turned, zeros, to->typed_data());
    return ffi::Error::Success();
  }
  const Shape shape = ShapeOf(*to, grad.dimensions(), taps[0], taps[1], stride, above, before);
  for (int64_t image = 0; image < shape.images; ++image) {
    const float* from = grad.typed_data() + image * shape.out_height * shape.out_row();
    float* line = to->typed_data() + image * shape.height * shape.in_row();
    const auto run = [&](auto work) {
      ForEachBlock(shape.height, shape.in_row(), shape.channels, line, line, work);
    };
    if (stride == 2)
      run(InputGradient<2>{shape, from, kernel.typed_data(), line});
    else
      run(InputGradient<0>{shape, from, kernel.typed_data(), line});
  }
  return ffi::Error::Success();
}

// x and the gradient of y to the gradient of the kernel [rows, columns, channels]. An image's sums
// are made apart and then added: so many small numbers added to one large one would lose digits.
ffi::Error RunKernelGradient(Floats x, Floats grad, int64_t stride, int64_t above, int64_t before,
                             ffi::Result<Floats> to) {
  const auto taps = to->dimensions();
  const Shape shape = ShapeOf(x, grad.dimensions(), taps[0], taps[1], stride, above, before);
  const int64_t size = shape.taps() * shape.channels;
  const auto [sums, zeros] = Scratch({size, shape.in_row()});
  std::fill(zeros, zeros + shape.in_row(), 0.0f);
  float* total = to->typed_data();
  std::fill(total, total + size, 0.0f);
  for (int64_t image = 0; image < shape.images; ++image) {
    const float* from = x.typed_data() + image * shape.height * shape.in_row();
    const float* line = grad.typed_data() + image * shape.out_height * shape.out_row();
    std::fill(sums, sums + size, 0.0f);
    const auto run = [&](auto work) {
      ForEachBlock(shape.out_height, shape.in_row() * shape.stride, shape.channels, from,
                   x.typed_data() + shape.images * shape.height * shape.in_row(), work);
    };
    if (shape.rows == 3 && shape.columns == 3)
      run(KernelGradient<3>{shape, from, line, zeros, sums});
    else if (shape.rows == 5 && shape.columns == 5)
      run(KernelGradient<5>{shape, from, line, zeros, sums});
    else
      run(KernelGradient<0>{shape, from, line, zeros, sums});
    for (int64_t i = 0; i < size; ++i) total[i] += sums[i];
  }
  return ffi::Error::Success();
}

auto Bound() {
  return ffi::Ffi::Bind()
      .Arg<Floats>()
      .Arg<Floats>()
      .Attr<int64_t>("stride")
      .Attr<int64_t>("above")
      .Attr<int64_t>("before")
      .Ret<Floats>();
}

}  // namespace
}  // namespace kd_jax

XLA_FFI_DEFINE_HANDLER_SYMBOL(KdJaxDepthwise, kd_jax::RunForward, kd_jax::Bound());
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdJaxDepthwiseInputGradient, kd_jax::RunInputGradient,
                              kd_jax::Bound());
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdJaxDepthwiseKernelGradient, kd_jax::RunKernelGradient,
                              kd_jax::Bound());
