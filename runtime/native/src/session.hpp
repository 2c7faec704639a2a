// A loaded graph or engine, and runs of it: on memory of its device, and on arrays of the host that a device gets copies
// of. Knows nothing of the libraries that run graphs, and nothing of the model: names and memory in and out.
#pragma once

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "engine.hpp"
#include "memory.hpp"
#include "signature.hpp"

namespace rf_internal {

enum class Element : int { float32 = 1, int32 = 6, int64 = 7, float16 = 10 };  // as ONNX numbers them
size_t num_bytes(Element element);

struct Tensor {
  void *data;
  size_t num_bytes;
  Element type;
  std::vector<int64_t> shape;
};

Tensor tensor(const float *data, std::vector<int64_t> shape);
Tensor tensor(const int64_t *data, std::vector<int64_t> shape);
// Numbers of a cache or of image features, of `bytes_each`.
Tensor kv_tensor(const void *data, size_t bytes_each, std::vector<int64_t> shape);
// Product of sizes that came from a file; raises std::bad_alloc where it is beyond memory.
size_t num_elements(const std::vector<int64_t> &shape);

// Runs of a session on tensors in its device's memory, which have to outlive it; all are bound before the first run.
class Run {
 public:
  virtual ~Run() = default;
  virtual void input(const std::string &name, const Tensor &tensor) = 0;
  virtual void output(const std::string &name, const Tensor &tensor) = 0;
  virtual void start() = 0;  // behind what the device was told before
};

class Session {
 public:
  virtual ~Session() = default;
  virtual const GraphSignature &signature() const = 0;
  virtual const Device &device() const = 0;
  virtual std::unique_ptr<Run> prepare() const = 0;
  virtual bool is_narrow(const std::string &) const { return false; }  // has int32 where the graph has int64
  // A size of an input's dimension to prepare for, where it may be larger than needed: a multiple of `step`, for a session
  // that prepares each size anew.
  virtual int64_t padded(const std::string &, size_t, int64_t, int64_t size) const { return size; }
  virtual int64_t longest(const std::string &, size_t) const { return std::numeric_limits<int64_t>::max(); }
};

// Several runs on the same memory, which has to outlive the binding. Arrays of the host are read anew by every run; a run
// on the host copies nothing, and one on a device uploads what has changed and downloads what is wanted.
class Binding {
 public:
  explicit Binding(const Session &session);
  Binding(const Binding &) = delete;
  Binding &operator=(const Binding &) = delete;

  void input(const std::string &name, const Tensor &array);
  void output(const std::string &name, const Tensor &array, bool is_wanted = true);
  void place_input(const std::string &name, const Tensor &tensor) { run_->input(name, tensor); }  // in the device's memory
  void place_output(const std::string &name, const Tensor &tensor) { run_->output(name, tensor); }
  void run();

 private:
  struct Array {
    std::string name;
    Tensor host;
    bool is_narrow, is_wanted;
    size_t num_bytes, at;  // in the block
  };
  void add(std::vector<Array> &arrays, const std::string &name, const Tensor &array, bool is_wanted);
  void place();
  void upload();
  void download();
  const Session &session_;
  const Device &device_;
  std::unique_ptr<Run> run_;
  std::vector<Array> inputs_, outputs_;
  std::vector<uint8_t> sent_, received_;  // what the device has of the inputs, and what came from it
  Memory block_;
};

// A library that runs graphs.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string words() const = 0;     // library and version
  virtual std::string provider() const = 0;  // "CPU", or who else computes
  virtual Target target() const = 0;         // what an engine has to be built for, to run here
  virtual bool needs_engine() const { return false; }
  // `compiled`: nothing is left to optimise.
  virtual std::unique_ptr<Session> open(const std::string &path, bool compiled) const = 0;
};

}  // namespace rf_internal
