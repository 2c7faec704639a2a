// Runs engines of TensorRT and TensorRT-RTX through librf_tensorrt, which is opened at run time and which alone knows
// NVIDIA's headers; see runtime/backends/cuda/tensorrt.py. Knows nothing of the model: names, shapes and addresses in.
#pragma once

#include <memory>
#include <string>

#include "session.hpp"

namespace rf_internal {

class TensorRtBackend : public Backend {
 public:
  // `name` is "tensorrt" or "tensorrt-rtx"; `module` and `library` may be "": those that are beside this library, and that
  // the system finds. Raises Error (missing) without a GPU, the module or the library, and (mismatch) where these differ.
  TensorRtBackend(const std::string &name, const std::string &module, const std::string &library);
  ~TensorRtBackend() override;

  std::string words() const override;
  std::string provider() const override;
  Target target() const override;
  bool needs_engine() const override { return true; }
  std::unique_ptr<Session> open(const std::string &path, bool compiled) const override;

  struct State;  // what its sessions share

 private:
  std::unique_ptr<State> state_;
};

}  // namespace rf_internal
