#include "schedule.hpp"

#include <cmath>

namespace rf_internal {

std::vector<float> timesteps(int64_t num_steps, int64_t num_patches, double shift, int64_t base_patches) {
  double base = double(base_patches ? base_patches : num_patches);
  double s = shift * std::sqrt(double(num_patches) / base);
  std::vector<float> times;
  for (int64_t i = 0; i <= num_steps; ++i) {
    double sigma = 1.0 - double(i) / double(num_steps);
    times.push_back(float(1.0 - s * sigma / (1.0 + (s - 1.0) * sigma)));
  }
  times.front() = 0, times.back() = 1;  // exact, whatever the rounding
  return times;
}

}  // namespace rf_internal
