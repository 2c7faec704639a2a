// Runs graphs with ONNX Runtime, which is opened at run time, on the CPU or on an execution provider of it. Knows nothing of
// the model: names and memory in and out.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ort_api.hpp"
#include "providers.hpp"
#include "session.hpp"

namespace rf_internal {

class OrtLibrary {
 public:
  // The library of the process: opened by the first call, never closed. "" for where it is by default.
  static const OrtLibrary &open(const std::string &path);

  const ort::Api &api() const { return api_; }
  const ort::PluginApi *plugins() const { return has_plugins_ ? &plugin_api_ : nullptr; }  // null before 1.22
  ort::Env *env() const { return env_; }
  const std::string &version() const { return version_; }
  Target target() const;
  void check(ort::Status *status, const std::string &doing = "") const;

 private:
  explicit OrtLibrary(const std::string &path);
  ort::Api api_;
  ort::PluginApi plugin_api_;
  bool has_plugins_ = false;
  ort::Env *env_ = nullptr;
  std::string version_;
};

struct Threads {
  int num = 0;  // of a run; 0: one per core that the process may use
  bool may_spin = true;  // they wait busily for the next run
};

// ONNX Runtime reads and writes the memory that was bound, on the CPU and on a GPU of NVIDIA's. Other providers copy it to
// their device before each run, and back behind it.
class OrtSession : public Session {
 public:
  OrtSession(const OrtLibrary &library, const std::string &path, const Threads &threads, bool compiled,
             const Provider &provider, const Device &device);
  ~OrtSession() override;
  OrtSession(const OrtSession &) = delete;
  OrtSession &operator=(const OrtSession &) = delete;

  const GraphSignature &signature() const override { return signature_; }
  const Device &device() const override { return device_; }
  std::unique_ptr<Run> prepare() const override;

 private:
  class BoundRun;
  std::vector<TensorSpec> read(bool is_input) const;
  const OrtLibrary &library_;
  ort::Session *session_ = nullptr;
  const Device &device_;
  int process_;
  bool is_on_cpu_;
  GraphSignature signature_;
};

class OrtBackend : public Backend {
 public:
  OrtBackend(const std::string &library, const Provider &provider, const Threads &threads)
      : library_(OrtLibrary::open(library)), provider_(provider), threads_(threads),
        device_(device_of(library_, provider)) {}

  std::string words() const override { return "onnxruntime " + library_.version(); }
  std::string provider() const override { return provider_.is_cpu() ? "CPU" : provider_.name; }
  Target target() const override { return library_.target(); }
  std::unique_ptr<Session> open(const std::string &path, bool compiled) const override {
    return std::make_unique<OrtSession>(library_, path, threads_, compiled, provider_, device_);
  }

 private:
  const OrtLibrary &library_;
  Provider provider_;
  Threads threads_;
  const Device &device_;
};

}  // namespace rf_internal
