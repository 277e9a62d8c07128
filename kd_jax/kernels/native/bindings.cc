// The functions that XLA calls. They only convert its buffers to pointers and shapes. The
// computations are in the headers, which do not depend on XLA.

#include <cstdint>

#include "batch_norm.h"
#include "depthwise.h"
#include "inverted_residual.h"
#include "stem.h"
#include "winograd.h"
#include "xla/ffi/api/ffi.h"

namespace kd_jax {
namespace {

namespace ffi = xla::ffi;

typedef ffi::Buffer<ffi::F32> Floats;
typedef ffi::Result<Floats> Result;

ffi::Error Winograd(Floats x, Floats kernel, Result y) {
  const auto from = x.dimensions();
  winograd::Run({from[0], from[1], from[2], from[3], y->dimensions()[3]}, x.typed_data(),
                kernel.typed_data(), y->typed_data());
  return ffi::Error::Success();
}

ffi::Error Stem(Floats x, Floats kernel, int64_t stride, Result y) {
  const auto from = x.dimensions(), to = y->dimensions();
  stem::Run({from[0], from[1], from[2], from[3], to[1], to[2], to[3], kernel.dimensions()[0],
             stride},
            x.typed_data(), kernel.typed_data(), y->typed_data());
  return ffi::Error::Success();
}

// For a block without an expansion, `expand` is [0, hidden].
ffi::Error InvertedResidual(Floats x, Floats expand, Floats expand_norm, Floats filter,
                            Floats filter_norm, Floats project, Floats project_norm,
                            int64_t stride, Result y) {
  const auto size = x.dimensions();
  const auto weights = [](const Floats& kernel, const Floats& norm) {
    const float* scale = norm.typed_data();
    return inverted_residual::Weights{kernel.typed_data(), scale, scale + norm.dimensions()[1]};
  };
  inverted_residual::Run({size[0], size[1], size[2], size[3], expand.dimensions()[1],
                          project.dimensions()[1], stride, expand.dimensions()[0] != 0},
                         x.typed_data(), weights(expand, expand_norm),
                         weights(filter, filter_norm), weights(project, project_norm),
                         y->typed_data());
  return ffi::Error::Success();
}

depthwise::Shape DepthwiseShape(ffi::Span<const int64_t> x, ffi::Span<const int64_t> y,
                                ffi::Span<const int64_t> kernel, int64_t stride, int64_t above,
                                int64_t before) {
  return {x[0], x[1], x[2], x[3], y[1], y[2], kernel[0], kernel[1], stride, above, before};
}

ffi::Error DepthwiseForward(Floats x, Floats kernel, int64_t stride, int64_t above, int64_t before,
                            Result y) {
  depthwise::RunForward(DepthwiseShape(x.dimensions(), y->dimensions(), kernel.dimensions(),
                                       stride, above, before),
                        x.typed_data(), kernel.typed_data(), y->typed_data());
  return ffi::Error::Success();
}

ffi::Error DepthwiseInputGradient(Floats grad, Floats kernel, int64_t stride, int64_t above,
                                  int64_t before, Result to) {
  depthwise::RunInputGradient(DepthwiseShape(to->dimensions(), grad.dimensions(),
                                             kernel.dimensions(), stride, above, before),
                              grad.typed_data(), kernel.typed_data(), to->typed_data());
  return ffi::Error::Success();
}

ffi::Error DepthwiseKernelGradient(Floats x, Floats grad, int64_t stride, int64_t above,
                                   int64_t before, Result to) {
  depthwise::RunKernelGradient(DepthwiseShape(x.dimensions(), grad.dimensions(), to->dimensions(),
                                              stride, above, before),
                               x.typed_data(), grad.typed_data(), to->typed_data());
  return ffi::Error::Success();
}

ffi::Error NormStatistics(Floats x, Result sums) {
  const int64_t channels = x.dimensions().back();
  batch_norm::RunStatistics(x.element_count() / channels, channels, x.typed_data(),
                            sums->typed_data());
  return ffi::Error::Success();
}

ffi::Error NormGradient(Floats x, Floats grad, Floats mean, Floats scale, Floats shift,
                        int64_t activation, Result sums) {
  const int64_t channels = x.dimensions().back();
  const bool known = batch_norm::RunGradient(
      x.element_count() / channels, channels, x.typed_data(), grad.typed_data(), mean.typed_data(),
      scale.typed_data(), shift.typed_data(), activation, sums->typed_data());
  return known ? ffi::Error::Success() : ffi::Error::InvalidArgument("no such activation");
}

auto DepthwiseBinding() {
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

using kd_jax::Floats;
using xla::ffi::Ffi;

XLA_FFI_DEFINE_HANDLER_SYMBOL(KdJaxWinograd, kd_jax::Winograd,
                              Ffi::Bind().Arg<Floats>().Arg<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    KdJaxStem, kd_jax::Stem,
    Ffi::Bind().Arg<Floats>().Arg<Floats>().Attr<int64_t>("stride").Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdJaxInvertedResidual, kd_jax::InvertedResidual,
                              Ffi::Bind()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Attr<int64_t>("stride")
                                  .Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdJaxDepthwise, kd_jax::DepthwiseForward,
                              kd_jax::DepthwiseBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdJaxDepthwiseInputGradient, kd_jax::DepthwiseInputGradient,
                              kd_jax::DepthwiseBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdJaxDepthwiseKernelGradient, kd_jax::DepthwiseKernelGradient,
                              kd_jax::DepthwiseBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdJaxNormStatistics, kd_jax::NormStatistics,
                              Ffi::Bind().Arg<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(KdJaxNormGradient, kd_jax::NormGradient,
                              Ffi::Bind()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Attr<int64_t>("activation")
                                  .Ret<Floats>());
