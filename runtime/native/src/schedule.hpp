// The timesteps of the denoising loop; see runtime/schedule.py. Knows nothing of models.
#pragma once

#include <cstdint>
#include <vector>

namespace rf_internal {

// [num_steps + 1] from exactly 0, noise, to exactly 1, the picture. `base_patches` 0: the same shift for all sizes.
std::vector<float> timesteps(int64_t num_steps, int64_t num_patches, double shift, int64_t base_patches);

}  // namespace rf_internal
