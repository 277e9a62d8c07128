// The sums over all pixels that batch norm needs in training, on CPU: sums of the maps for the
// statistics, and sums of the gradient for its own gradients. Each is one pass that reads every
// number once and keeps the values of a channel in registers.

#ifndef KD_JAX_NATIVE_BATCH_NORM_H_
#define KD_JAX_NATIVE_BATCH_NORM_H_

#include <algorithm>
#include <cstdint>

#include "vectors.h"

namespace kd_jax::batch_norm {

constexpr int64_t kBlockBytes = 32 << 10;  // of the pixels that are read together for all channels

// The activation after batch norm, in the order of `ACTIVATIONS` in activations.py.
enum Activation : int64_t { kNone, kRelu, kRelu6, kHardSwish };

// Returns `grad` times the derivative of the activation at `y`.
template <Activation kActivation, int kLanes>
inline Register<kLanes> Through(Register<kLanes> y, Register<kLanes> grad) {
  const Register<kLanes> zero = {};
  if constexpr (kActivation == kRelu) return y > zero ? grad : zero;
  if constexpr (kActivation == kRelu6) {
    grad = y > zero ? grad : zero;
    return y < zero + 6.0f ? grad : zero;
  }
  if constexpr (kActivation == kHardSwish) {
    const Register<kLanes> inside = y > zero - 3.0f ? grad * (y * (1.0f / 3.0f) + 0.5f) : zero;
    return y < zero + 3.0f ? inside : grad;
  }
  return grad;
}

// Adds `part` to `total`; keeps the rounding error in `lost` for the next addition (Kahan).
template <int kLanes>
inline void AddTo(float* total, float* lost, Register<kLanes> part) {
  const Register<kLanes> before = Load<kLanes>(total);
  part -= Load<kLanes>(lost);
  const Register<kLanes> after = before + part;
  Store<kLanes>(lost, after - before - part);
  Store<kLanes>(total, after);
}

// Adds two sums over pixels [first, last), for the vector of channels at c, to `totals`
// [2][channels]; `work(offset of a pixel, sum, product)` adds a pixel. Many small numbers added one
// by one to a large one would lose digits, and training would depend on how pixels are divided over
// devices. So a few pixels at a time are summed, in four chains that the processor runs in
// parallel.
template <int kLanes, typename Work>
inline void AddBlock(int64_t first, int64_t last, int64_t channels, int64_t c, float* totals,
                     float* lost, const Work& work) {
  constexpr int kChains = 4, kPixels = 32;
  Register<kLanes> sum = {}, product = {};
  for (int64_t pixel = first; pixel < last;) {
    const int64_t end = std::min<int64_t>(last, pixel + kPixels);
    Register<kLanes> a[kChains] = {}, b[kChains] = {};
    for (; pixel + kChains <= end; pixel += kChains)
#pragma GCC unroll 4
      for (int i = 0; i < kChains; ++i) work((pixel + i) * channels + c, a[i], b[i]);
    for (; pixel < end; ++pixel) work(pixel * channels + c, a[0], b[0]);
    sum += (a[0] + a[1]) + (a[2] + a[3]);
    product += (b[0] + b[1]) + (b[2] + b[3]);
  }
  AddTo<kLanes>(totals + c, lost + c, sum);
  AddTo<kLanes>(totals + channels + c, lost + channels + c, product);
}

template <typename Prepare>
void TwoSums(int64_t pixels, int64_t channels, float* totals, Prepare prepare) {
  float* const lost = Scratch({2 * channels})[0];
  std::fill(totals, totals + 2 * channels, 0.0f);
  std::fill(lost, lost + 2 * channels, 0.0f);
  const int64_t row_bytes = channels * int64_t{sizeof(float)};
  const int64_t block = std::max<int64_t>(8, kBlockBytes / row_bytes);
  for (int64_t first = 0; first < pixels; first += block) {
    const int64_t last = std::min(pixels, first + block);
    ForEachVector(channels, [&]<int kLanes>(int64_t c) {
      AddBlock<kLanes>(first, last, channels, c, totals, lost,
                       prepare.template operator()<kLanes>(c));
    });
  }
}

struct Statistics {
  const float* x;
  template <int kLanes>
  auto operator()(int64_t) const {
    return [x = x](int64_t at, Register<kLanes>& sum, Register<kLanes>& squares) {
      const Register<kLanes> here = Load<kLanes>(x + at);
      sum += here;
      squares += here * here;
    };
  }
};

// From x [pixels, channels] computes the sums of x and of x squared, [2, channels].
inline void RunStatistics(int64_t pixels, int64_t channels, const float* x, float* sums) {
  TwoSums(pixels, channels, sums, Statistics{x});
}

template <Activation kActivation>
struct Gradient {
  const float *x, *grad, *mean, *scale, *shift;
  template <int kLanes>
  auto operator()(int64_t c) const {
    return [x = x, grad = grad, mean = Load<kLanes>(mean + c), scale = Load<kLanes>(scale + c),
            shift = Load<kLanes>(shift + c)](int64_t at, Register<kLanes>& sum,
                                             Register<kLanes>& product) {
      const Register<kLanes> centred = Load<kLanes>(x + at) - mean;
      const Register<kLanes> here =
          Through<kActivation, kLanes>(centred * scale + shift, Load<kLanes>(grad + at));
      sum += here;
      product += here * centred;
    };
  }
};

// Computes the sums of the gradient before the activation, and of this gradient times x - mean, [2,
// channels]. `grad` is the gradient of activation((x - mean) * scale + shift); x and grad are
// [pixels, channels]; mean, scale and shift are [channels]. Returns false for an unknown
// activation.
inline bool RunGradient(int64_t pixels, int64_t channels, const float* x, const float* grad,
                        const float* mean, const float* scale, const float* shift,
                        int64_t activation, float* sums) {
  const auto run = [&](auto work) { TwoSums(pixels, channels, sums, work); };
  switch (activation) {
    case kNone: run(Gradient<kNone>{x, grad, mean, scale, shift}); return true;
    case kRelu: run(Gradient<kRelu>{x, grad, mean, scale, shift}); return true;
    case kRelu6: run(Gradient<kRelu6>{x, grad, mean, scale, shift}); return true;
    case kHardSwish: run(Gradient<kHardSwish>{x, grad, mean, scale, shift}); return true;
  }
  return false;
}

}  // namespace kd_jax::batch_norm

#endif  // KD_JAX_NATIVE_BATCH_NORM_H_
