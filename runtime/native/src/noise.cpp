#include "noise.hpp"

#include <algorithm>
#include <cmath>

namespace rf_internal {
namespace {

class Philox {
 public:
  Philox(uint64_t seed, Stage stage, uint32_t step) : key_{seed, uint64_t(stage) << 32 | step} {}

  double uniform() {  // in (0, 1): the largest raw number would round up to 1
    return std::min((double(next() >> 11) + 0.5) * 0x1p-53, 1.0 - 0x1p-53);
  }

 private:
  uint64_t next() {
    if (used_ == 4) generate();
    return block_[used_++];
  }

  void generate() {
    ++counter_;  // of 256 bits, of which 2**66 numbers need the lowest 64
    uint64_t c[4] = {counter_, 0, 0, 0}, k[2] = {key_[0], key_[1]};
    for (int round = 0; round < 10; ++round) {
      if (round) k[0] += 0x9E3779B97F4A7C15u, k[1] += 0xBB67AE8584CAA73Bu;
      uint64_t high0, high1;
      uint64_t low0 = multiply(0xD2E7470EE14C6C93u, c[0], high0), low1 = multiply(0xCA5A826395121157u, c[2], high1);
      uint64_t one = c[1], three = c[3];
      c[0] = high1 ^ one ^ k[0], c[1] = low1, c[2] = high0 ^ three ^ k[1], c[3] = low0;
    }
    std::copy_n(c, 4, block_);
    used_ = 0;
  }

  static uint64_t multiply(uint64_t a, uint64_t b, uint64_t &high) {  // in halves: not every compiler has 128 bits
    uint64_t a0 = uint32_t(a), a1 = a >> 32, b0 = uint32_t(b), b1 = b >> 32;
    uint64_t low = a0 * b0, middle = a1 * b0 + (low >> 32), other = a0 * b1 + uint32_t(middle);
    high = a1 * b1 + (middle >> 32) + (other >> 32);
    return a * b;
  }

  uint64_t key_[2], counter_ = 0, block_[4];
  int used_ = 4;
};

}  // namespace

void fill_gumbel(uint64_t seed, Stage stage, uint32_t step, float *out, size_t size) {
  Philox random(seed, stage, step);
  for (size_t i = 0; i < size; ++i) out[i] = float(-std::log(-std::log(random.uniform())));
}

void fill_normal(uint64_t seed, float *out, size_t size) {
  constexpr double two_pi = 2.0 * 3.14159265358979323846;
  Philox random(seed, Stage::pixels, 0);
  for (size_t i = 0; i < size; i += 2) {
    double radius = std::sqrt(-2.0 * std::log(random.uniform())), angle = two_pi * random.uniform();
    out[i] = float(radius * std::cos(angle));
    if (i + 1 < size) out[i + 1] = float(radius * std::sin(angle));
  }
}

}  // namespace rf_internal
