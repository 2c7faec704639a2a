// Execution providers of ONNX Runtime: who computes instead of its CPU kernels. Knows nothing of graphs.
#pragma once

#include <string>

#include "ort_api.hpp"

namespace rf_internal {

class OrtLibrary;

struct Provider {
  std::string name;     // "" and "CPU": the CPU kernels, on the memory that is bound
  std::string library;  // of a plugin; "" where ONNX Runtime has the provider itself, or beside itself

  bool is_cpu() const { return name.empty() || name == "CPU"; }
};

// Lets sessions with these options run on a provider. Raises Error (missing) where this ONNX Runtime has it not, or finds
// no device or driver for it.
void use_provider(const OrtLibrary &library, ort::SessionOptions *options, const Provider &provider);

}  // namespace rf_internal
