// Holds every compiled layer against stored results, without JAX: for processors that JAX is not
// installed for, under an emulator. `test_native_elsewhere.py` writes the cases and builds this.
//
//   harness FILE     exits with 1 when a result is further from the stored one than it may be
//
// A case is a line of whole numbers in a fixed record of 16 int64: the layer, its shape (11), the
// number of arrays; then for each array its length as int64 and its float32; the last is the result.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "batch_norm.h"
#include "depthwise.h"
#include "inverted_residual.h"
#include "stem.h"
#include "winograd.h"

namespace {

constexpr double kTolerance = 4e-5;  // of the largest value: Winograd's

enum Layer : int64_t {
  kWinograd,
  kStem,
  kBlock,
  kDepthwise,
  kDepthwiseInput,
  kDepthwiseKernel,
  kStatistics,
  kNormGradient
};

typedef std::vector<float> Array;

// The sums of the taps, each packed as the layer wants them.
Array PackSums(const Array& sums, int64_t in, int64_t out) {
  Array packed(sums.size());
  for (int64_t s = 0; s < kd_jax::winograd::kSums; ++s)
    kd_jax::Pack(sums.data() + s * in * out, nullptr, in, out, packed.data() + s * in * out);
  return packed;
}

void Compute(int64_t layer, const int64_t* n, const std::vector<Array>& from, Array& to) {
  const auto data = [&](size_t i) { return from[i].data(); };
  const kd_jax::depthwise::Shape filter{n[0], n[1], n[2], n[3], n[4], n[5],
                                        n[6], n[7], n[8], n[9], n[10]};
  switch (layer) {
    case kWinograd:
      kd_jax::winograd::Run({n[0], n[1], n[2], n[3], n[4]}, data(0),
                            PackSums(from[1], n[3], n[4]).data(), to.data());
      break;
    case kStem:
      kd_jax::stem::Run({n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8]}, data(0), data(1),
                        to.data());
      break;
    case kBlock: {
      const auto weights = [&](size_t i, int64_t columns) {
        return kd_jax::inverted_residual::Weights{data(i), data(i + 1), data(i + 1) + columns};
      };
      kd_jax::inverted_residual::Run({n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7] != 0},
                                     data(0), weights(1, n[4]), weights(3, n[4]),
                                     weights(5, n[5]), to.data());
      break;
    }
    case kDepthwise:
      kd_jax::depthwise::RunForward(filter, data(0), data(1), to.data());
      break;
    case kDepthwiseInput:
      kd_jax::depthwise::RunInputGradient(filter, data(0), data(1), to.data());
      break;
    case kDepthwiseKernel:
      kd_jax::depthwise::RunKernelGradient(filter, data(0), data(1), to.data());
      break;
    case kStatistics:
      kd_jax::batch_norm::RunStatistics(n[0], n[1], data(0), to.data());
      break;
    case kNormGradient:
      kd_jax::batch_norm::RunGradient(n[0], n[1], data(0), data(1), data(2), data(3), data(4),
                                      n[2], to.data());
      break;
  }
}

}  // namespace

int main(int, char** arguments) {
  std::FILE* file = std::fopen(arguments[1], "rb");
  if (!file) return 2;
  int64_t record[16];
  int cases = 0, wrong = 0;
  while (std::fread(record, sizeof(int64_t), 16, file) == 16) {
    std::vector<Array> arrays(record[12]);
    for (Array& array : arrays) {
      int64_t size;
      if (std::fread(&size, sizeof(size), 1, file) != 1) return 2;
      array.resize(size);
      if (std::fread(array.data(), sizeof(float), size, file) != static_cast<size_t>(size)) return 2;
    }
    const Array expected = arrays.back();
    arrays.pop_back();
    Array got(expected.size(), NAN);
    Compute(record[0], record + 1, arrays, got);
    double largest = 0, error = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double difference = std::abs(double{got[i]} - double{expected[i]});
      error = std::isnan(difference) ? INFINITY : std::max(error, difference);
      largest = std::max(largest, std::abs(double{expected[i]}));
    }
    const bool good = error <= kTolerance * largest;
    std::printf("case %d, layer %d: %.1e of the largest value%s\n", cases++,
                static_cast<int>(record[0]), error / largest, good ? "" : ", WRONG");
    wrong += !good;
  }
  std::printf("%d cases, %d wrong, vectors of %d\n", cases, wrong, kd_jax::kNative);
  return wrong != 0 || cases == 0;
}
