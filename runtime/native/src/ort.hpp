// Runs graphs with ONNX Runtime, which is opened at run time, on the CPU or on an execution provider of it. Knows nothing of the model: names and memory in
// and out.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "ort_api.hpp"
#include "providers.hpp"
#include "signature.hpp"

namespace rf_internal {

// Memory of a tensor; what is bound has to outlive its binding.
struct Tensor {
  void *data;
  size_t num_bytes;
  int type;  // ort::ElementType
  std::vector<int64_t> shape;
};

Tensor tensor(const float *data, std::vector<int64_t> shape);
Tensor tensor(const int64_t *data, std::vector<int64_t> shape);
// Numbers of a cache or of image features, of `bytes_each`.
Tensor kv_tensor(const uint8_t *data, size_t bytes_each, std::vector<int64_t> shape);
// Product of sizes that came from a file; raises std::bad_alloc where it is beyond memory.
size_t num_elements(const std::vector<int64_t> &shape);

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

class OrtSession;

struct Threads {
  int num = 0;  // of a run; 0: one per core that the process may use
  bool may_spin = true;  // they wait busily for the next run
};

// Runs that copy nothing on the CPU: ONNX Runtime reads and writes the memory that was bound. On another provider what is
// bound is copied to its device before each run, and back behind it.
class OrtBinding {
 public:
  explicit OrtBinding(const OrtSession &session);
  ~OrtBinding();
  OrtBinding(const OrtBinding &) = delete;
  OrtBinding &operator=(const OrtBinding &) = delete;

  void input(const std::string &name, const Tensor &tensor);
  void output(const std::string &name, const Tensor &tensor);
  void run();

 private:
  ort::Value *value(const Tensor &tensor);
  const OrtSession &session_;
  ort::MemoryInfo *memory_ = nullptr;
  ort::IoBinding *binding_ = nullptr;
  std::vector<ort::Value *> values_;
  std::vector<std::pair<std::string, ort::Value *>> copied_;  // inputs, where a device has copies of them
};

class OrtSession {
 public:
  // `compiled`: nothing is left to optimise.
  OrtSession(const OrtLibrary &library, const std::string &path, const Threads &threads, bool compiled,
             const Provider &provider);
  ~OrtSession();
  OrtSession(const OrtSession &) = delete;
  OrtSession &operator=(const OrtSession &) = delete;

  const GraphSignature &signature() const { return signature_; }
  const OrtLibrary &library() const { return library_; }
  ort::Session *handle() const { return session_; }
  bool is_on_cpu() const { return is_on_cpu_; }

 private:
  std::vector<TensorSpec> read(bool is_input) const;
  const OrtLibrary &library_;
  ort::Session *session_ = nullptr;
  int process_;
  bool is_on_cpu_;
  GraphSignature signature_;
};

}  // namespace rf_internal
