// The sums over all pixels that batch norm takes in training, on CPUs: of the maps for its
// statistics, and of the gradient for its own. Each is one pass that reads every number once; what
// belongs to a channel stays in registers.

#include <algorithm>
#include <cstdint>

#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace kd_jax {
namespace {

typedef ffi::Buffer<ffi::F32> Floats;

constexpr int64_t kBlockBytes = 32 << 10;  // of pixels that all channels pass over together

// What follows batch norm; `norm.py` names them in this order.
enum Activation : int64_t { kNone, kRelu, kRelu6, kHardSwish };

// `grad` times the activation's derivative at `y`.
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

// `part` added to `total`, with what rounding loses kept in `lost` for the next time.
template <int kLanes>
inline void AddTo(float* total, float* lost, Register<kLanes> part) {
  const Register<kLanes> before = Load<kLanes>(total);
  part -= Load<kLanes>(lost);
  const Register<kLanes> after = before + part;
  Store<kLanes>(lost, after - before - part);
  Store<kLanes>(total, after);
}

// Two sums of some channels over pixels [first, last), added to `totals` [2][channels]:
// `work(place of a pixel, sums)` adds a pixel. Many numbers added one by one to a large one would
// lose digits, and training would depend on how pixels are divided over devices. So a few at a time
// are added up, in four chains, which the processor works on side by side.
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
  const auto [lost] = Scratch({2 * channels});
  std::fill(totals, totals + 2 * channels, 0.0f);
  std::fill(lost, lost + 2 * channels, 0.0f);
  const int64_t row_bytes = channels * int64_t{sizeof(float)};
  const int64_t some = std::max<int64_t>(8, kBlockBytes / row_bytes);
  for (int64_t first = 0; first < pixels; first += some) {
    const int64_t last = std::min(pixels, first + some);
    int64_t c = 0;
    for (; c + 16 <= channels; c += 16)
      AddBlock<16>(first, last, channels, c, totals, lost, prepare.template operator()<16>(c));
    for (; c < channels; c += 8)
      AddBlock<8>(first, last, channels, c, totals, lost, prepare.template operator()<8>(c));
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

// x [..., channels] to the sums of x and of x squared, [2, channels].
ffi::Error RunStatistics(Floats x, ffi::Result<Floats> sums) {
  const int64_t channels = x.dimensions().back();
  TwoSums(x.element_count() / channels, channels, sums->typed_data(), Statistics{x.typed_data()});
  return ffi::Error::Success();
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

// x, the gradient of activation((x - mean) * scale + shift), and mean, scale and shift, each
// [channels], to the sums of the gradient before the activation, and of that times x - mean.
ffi::Error RunGradient(Floats x, Floats grad, Floats mean, Floats scale, Floats shift,
                       int64_t activation, ffi::Result<Floats> sums) {
  const int64_t channels = x.dimensions().back();
  const auto run = [&](auto work) {
    TwoSums(x.element_count() / channels, channels, sums->typed_data(), work);
  };
  const float *from = x.typed_data(), *of = grad.typed_data(), *m = mean.typed_data(),
              *s = scale.typed_data(), *t = shift.typed_data();
  switch (activation) {
    case kNone: run(Gradient<kNone>{from, of, m, s, t}); break;
    case kRelu: run(Gradient<kRelu>{from, of, m, s, t}); break;
    case kRelu6: run(Gradient<kRelu6>{from, of, m, s, t}); break;
    case kHardSwish: run(Gradient<kHardSwish>{from, of, m, s, t}); break;
    default: return ffi::Error::InvalidArgument("no such activation");
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace kd_jax

XLA_FFI_DEFINE_HANDLER_SYMBOL(KdJaxNormStatistics, kd_jax::RunStatistics,
                              xla::ffi::Ffi::Bind().Arg<kd_jax::Floats>().Ret<kd_jax::Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdJaxNormGradient, kd_jax::RunGradient,
                              xla::ffi::Ffi::Bind()
                                  .Arg<kd_jax::Floats>()
                                  .Arg<kd_jax::Floats>()
                                  .Arg<kd_jax::Floats>()
                                  .Arg<kd_jax::Floats>()
                                  .Arg<kd_jax::Floats>()
                                  .Attr<int64_t>("activation")
                                  .Ret<kd_jax::Floats>());
