// Execution providers of ONNX Runtime: who computes instead of its CPU kernels, and in whose memory. Knows nothing of
// graphs.
#pragma once

#include <string>

#include "memory.hpp"
#include "ort_api.hpp"

namespace rf_internal {

class OrtLibrary;

struct Provider {
  std::string name;     // "" and "CPU": the CPU kernels, on the memory that is bound
  std::string library;  // of a plugin; "" where ONNX Runtime has the provider itself, or beside itself

  bool is_cpu() const { return name.empty() || name == "CPU"; }
};

// Where a provider reads and writes without copies: the GPU's memory for those of NVIDIA, else the host's. Raises Error
// (missing) where there is no GPU.
const Device &device_of(const OrtLibrary &library, const Provider &provider);

// Lets sessions with these options run on a provider. Raises Error (missing) where this ONNX Runtime has it not, or finds
// no device or driver for it.
void use_provider(const OrtLibrary &library, ort::SessionOptions *options, const Provider &provider);

}  // namespace rf_internal
