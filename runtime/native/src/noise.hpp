// Counter-based random numbers: the same noise from the same seed on every host. Knows nothing of models.
//
// Philox4x64-10 (Salmon et al., SC 2011) with key = [seed, stage << 32 | step] and a 256-bit counter that starts at 1,
// as NumPy runs it; see runtime/noise.py for the formulas.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rf_internal {

enum class Stage : uint64_t { representation = 0, pixels = 1, text = 2 };

void fill_gumbel(uint64_t seed, Stage stage, uint32_t step, float *out, size_t size);
void fill_normal(uint64_t seed, float *out, size_t size);

}  // namespace rf_internal
