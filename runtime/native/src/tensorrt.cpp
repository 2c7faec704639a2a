#include "tensorrt.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "../tensorrt/module.h"
#include "cuda.hpp"
#include "error.hpp"

namespace rf_internal {
namespace {

using Shapes = std::map<std::string, std::vector<int64_t>>;
using Message = char[2000];

constexpr size_t kMaxIdle = 8;  // contexts of an engine that wait for a run of their shapes

std::string or_else(const char *text, const char *otherwise) { return *text ? text : otherwise; }

std::vector<int64_t> sizes_of(const rf_trt_shape &shape) { return {shape.sizes, shape.sizes + shape.num_dims}; }

std::string words_of(const std::vector<int64_t> &shape) {  // as Python writes them
  std::string text;
  for (int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "(" + text + (shape.size() == 1 ? ",)" : ")");
}

std::string beside_this_library(const std::string &file) {
  Dl_info found;
  if (!dladdr(reinterpret_cast<void *>(&beside_this_library), &found) || !found.dli_fname) return file;
  return (std::filesystem::path(found.dli_fname).parent_path() / file).string();
}

const rf_trt_module &open_module(const std::string &name, const std::string &given) {
  std::string file = name == "tensorrt" ? "librf_tensorrt.so" : "librf_tensorrt_rtx.so";
  const char *named = std::getenv("RF_TENSORRT");
  std::string path = !given.empty() ? given : named && *named ? named : beside_this_library(file);
  void *opened = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays, as the library behind it does
  auto get = opened ? reinterpret_cast<const rf_trt_module *(*)()>(dlsym(opened, "rf_tensorrt_module")) : nullptr;
  std::string why = opened ? path + " is none" : dlerror();
  if (get && get()->abi != RF_TENSORRT_ABI) why = path + " is of another version than this library", get = nullptr;
  if (get && get()->backend != name) why = path + " is for " + get()->backend, get = nullptr;
  if (!get)
    throw Error("There is no module for " + name + ": " + why + ". Build it where NVIDIA's headers are, with the CMake option "
                "RF_WITH_TENSORRT, and put it beside librf_runtime, or name it in the options (backend_library) or in "
                "RF_TENSORRT.",
                RF_MISSING);
  return *get();
}

// One block for the activations of all engines, which run one after another.
class Arena {
 public:
  explicit Arena(const Device &device) : device_(device) {}

  void reserve(int64_t num_bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    num_bytes_ = std::max(num_bytes_, num_bytes);
  }

  std::pair<uint8_t *, int64_t> block() {
    std::lock_guard<std::mutex> lock(mutex_);
    // An older, smaller block stays: contexts refer to it.
    if (blocks_.empty() || int64_t(blocks_.back().num_bytes()) < num_bytes_) blocks_.emplace_back(device_, size_t(num_bytes_));
    return {blocks_.back().data(), int64_t(blocks_.back().num_bytes())};
  }

 private:
  const Device &device_;
  std::mutex mutex_;
  int64_t num_bytes_ = 0;
  std::vector<Memory> blocks_;
};

}  // namespace

struct TensorRtBackend::State {
  const Cuda &cuda;
  std::string name;
  const rf_trt_module &module;
  Arena arena;
  std::string version;
  void *library = nullptr;

  State(const Cuda &cuda, const std::string &name, const rf_trt_module &module)
      : cuda(cuda), name(name), module(module), arena(cuda) {}
  ~State() {
    if (!library || !cuda.is_here()) return;
    Cuda::Current current(cuda);
    module.close(library);
  }
};

namespace {

class TensorRtSession : public Session {
 public:
  using State = TensorRtBackend::State;

  TensorRtSession(State &state, const std::string &path);
  ~TensorRtSession() override;

  const GraphSignature &signature() const override { return signature_; }
  const Device &device() const override { return state_.cuda; }
  std::unique_ptr<Run> prepare() const override;
  bool is_narrow(const std::string &name) const override { return tensors_.at(name).type == int(Element::int32); }
  int64_t padded(const std::string &input, size_t axis, int64_t step, int64_t size) const override;
  int64_t longest(const std::string &input, size_t axis) const override { return range(input, axis).second; }

 private:
  class BoundRun;
  struct Context {
    void *handle;
    Shapes shapes;
  };
  std::pair<int64_t, int64_t> range(const std::string &input, size_t axis) const;
  std::vector<int64_t> shape(const std::string &input, int profile, int end) const;
  int choose_profile(const Shapes &shapes) const;
  std::string misfit(const std::string &input, const std::vector<int64_t> &shape, int profile) const;
  Context take(const Shapes &shapes) const;
  void give(Context context) const;
  void release(void *context) const;
  [[noreturn]] void fail(const std::string &what) const;

  State &state_;
  const rf_trt_module &module_;
  std::string file_;
  void *engine_ = nullptr;
  std::map<std::string, rf_trt_tensor> tensors_;
  GraphSignature signature_;
  mutable std::mutex mutex_;
  mutable std::vector<Context> idle_;
};

TensorRtSession::TensorRtSession(State &state, const std::string &path)
    : state_(state), module_(state.module), file_(std::filesystem::path(path).filename().string()) {
  std::ifstream in(path, std::ios::binary);
  std::vector<char> plan{std::istreambuf_iterator<char>(in), {}};
  Cuda::Current current(state.cuda);
  Message why = "";
  engine_ = module_.load(state.library, plan.data(), plan.size(), why, sizeof why);
  if (!engine_)
    throw Error(state.name + " " + state.version + " cannot load " + path + ": " + or_else(why, "it gives no reason") +
                    ". Build the engine again: rf-export build-engine.",
                RF_MISMATCH);
  for (int i = 0; i < module_.num_tensors(engine_); ++i) {
    rf_trt_tensor tensor;
    module_.tensor(engine_, i, &tensor);
    TensorSpec spec{tensor.name, "another type", {}};  // an engine keeps no names of free dimensions
    for (int d = 0; d < tensor.num_dims; ++d) spec.shape.push_back(tensor.shape[d] < 0 ? Dim{0, "?"} : Dim{tensor.shape[d], ""});
    auto type = Element(tensor.type);
    if (type == Element::float32) spec.dtype = "float32";
    if (type == Element::float16) spec.dtype = "float16";
    if (type == Element::int64 || type == Element::int32) spec.dtype = "int64";  // of which TensorRT 8.6 makes int32
    (tensor.is_input ? signature_.inputs : signature_.outputs).push_back(spec);
    tensors_[tensor.name] = tensor;
  }
  state.arena.reserve(module_.activation_bytes(engine_));
}

TensorRtSession::~TensorRtSession() {
  if (!state_.cuda.is_here()) return;
  for (auto &context : idle_) release(context.handle);
  Cuda::Current current(state_.cuda);
  module_.unload(engine_);
}

void TensorRtSession::fail(const std::string &what) const {
  Message why = "";
  module_.last_error(why, sizeof why);
  throw Error(state_.name + " " + state_.version + " " + what + " of " + file_ + ": " + or_else(why, "it gives no reason") + ".",
              RF_FAULT);
}

std::vector<int64_t> TensorRtSession::shape(const std::string &input, int profile, int end) const {
  rf_trt_shape ends[3] = {};
  module_.range(engine_, input.c_str(), profile, ends);
  return sizes_of(ends[end]);
}

std::pair<int64_t, int64_t> TensorRtSession::range(const std::string &input, size_t axis) const {
  Cuda::Current current(state_.cuda);
  int64_t least = std::numeric_limits<int64_t>::max(), most = 0;
  for (int profile = 0; profile < module_.num_profiles(engine_); ++profile) {
    least = std::min(least, shape(input, profile, 0).at(axis));
    most = std::max(most, shape(input, profile, 2).at(axis));
  }
  return {least, most};
}

int64_t TensorRtSession::padded(const std::string &input, size_t axis, int64_t step, int64_t size) const {
  auto [least, most] = range(input, axis);
  int64_t rounded = (std::max<int64_t>(size, 1) + step - 1) / step * step;
  return std::max(std::min(std::max(rounded, least), most), size);
}

std::string TensorRtSession::misfit(const std::string &input, const std::vector<int64_t> &sizes, int profile) const {
  auto least = shape(input, profile, 0), most = shape(input, profile, 2);
  bool fits = sizes.size() == least.size();
  for (size_t d = 0; fits && d < sizes.size(); ++d) fits = least[d] <= sizes[d] && sizes[d] <= most[d];
  return fits ? "" : input + " of shape " + words_of(sizes) + ", and it takes " + words_of(least) + " to " + words_of(most);
}

// Of the profiles that take the shapes, the one whose best shape of the first input is nearest: text_decoder has one for
// whole prompts and one for single tokens, and its first input is the ids.
int TensorRtSession::choose_profile(const Shapes &shapes) const {
  auto &first = signature_.inputs.at(0).name;
  std::string reason;
  int chosen = -1;
  int64_t nearest = 0;
  for (int profile = 0; profile < module_.num_profiles(engine_); ++profile) {
    std::string wrong;
    for (size_t i = 0; wrong.empty() && i < signature_.inputs.size(); ++i)
      wrong = misfit(signature_.inputs[i].name, shapes.at(signature_.inputs[i].name), profile);
    if (reason.empty()) reason = wrong;
    if (!wrong.empty()) continue;
    auto best = shape(first, profile, 1);
    auto &wanted = shapes.at(first);
    int64_t off = 0;
    for (size_t d = 0; d < best.size(); ++d) off += std::abs(wanted[d] - best[d]);
    if (chosen < 0 || off < nearest) chosen = profile, nearest = off;
  }
  if (chosen < 0)
    throw Error(file_ + " was built for other sizes: " + reason + ". Draw other sizes or fewer pictures at once, or build it "
                "with wider ranges: rf-export build-engine with --dim batch=1:1:8, prompt, height or width.");
  return chosen;
}

// A context for runs of these shapes: one that was used before, or a new one.
TensorRtSession::Context TensorRtSession::take(const Shapes &shapes) const {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = std::find_if(idle_.begin(), idle_.end(), [&](auto &each) { return each.shapes == shapes; });
    if (found != idle_.end()) {
      Context context = std::move(*found);
      idle_.erase(found);
      return context;
    }
  }
  Cuda::Current current(state_.cuda);
  int profile = choose_profile(shapes);
  Message why = "";
  Context context{module_.create_context(engine_, why, sizeof why), shapes};
  if (!context.handle) fail("makes no context");
  try {
    auto [activations, num_bytes] = state_.arena.block();
    if (!module_.use(context.handle, profile, activations, num_bytes, state_.cuda.stream())) fail("does not take a profile");
    for (auto &[name, sizes] : shapes) {
      rf_trt_shape shape{int32_t(sizes.size()), {}};
      std::copy(sizes.begin(), sizes.end(), shape.sizes);
      if (!module_.set_shape(context.handle, name.c_str(), &shape)) fail("does not take the shape " + words_of(sizes) + " of " + name);
    }
  } catch (...) {
    release(context.handle);
    throw;
  }
  return context;
}

void TensorRtSession::give(Context context) const {
  void *oldest = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(context));
    if (idle_.size() > kMaxIdle) oldest = idle_.front().handle, idle_.erase(idle_.begin());
  }
  if (oldest) release(oldest);
}

void TensorRtSession::release(void *context) const {
  Cuda::Current current(state_.cuda);
  state_.cuda.wait();  // for what it still runs
  module_.release_context(context);
}

class TensorRtSession::BoundRun : public Run {
 public:
  explicit BoundRun(const TensorRtSession &session) : session_(session) {}
  ~BoundRun() override {
    if (context_.handle) session_.give(std::move(context_));
  }

  void input(const std::string &name, const Tensor &tensor) override { inputs_[name] = tensor.shape, bound_[name] = tensor.data; }
  void output(const std::string &name, const Tensor &tensor) override { bound_[name] = tensor.data; }

  void start() override {
    auto &module = session_.module_;
    if (!context_.handle) settle();
    Cuda::Current current(session_.state_.cuda);
    if (!module.enqueue(context_.handle, session_.state_.cuda.stream())) session_.fail("did not run a graph");
  }

 private:
  void settle() {
    context_ = session_.take(inputs_);
    auto &module = session_.module_;
    Cuda::Current current(session_.state_.cuda);
    for (auto &[name, tensor] : session_.tensors_) {
      if (!bound_.count(name)) unwanted_.push_back(place_of(name, tensor)), bound_[name] = unwanted_.back().data();
      if (tensor.written_over && bound_[name] != bound_[tensor.written_over])
        session_.fail("has to write " + name + " over " + tensor.written_over + ", and it lies elsewhere, in a run");
      if (!module.set_address(context_.handle, name.c_str(), bound_[name])) session_.fail("does not take the tensor " + name);
    }
  }

  // Outputs that nobody wants need a place too.
  Memory place_of(const std::string &name, const rf_trt_tensor &tensor) const {
    rf_trt_shape shape{};
    session_.module_.shape(context_.handle, name.c_str(), &shape);
    return Memory(session_.state_.cuda, num_elements(sizes_of(shape)) * num_bytes(Element(tensor.type)));
  }

  const TensorRtSession &session_;
  Shapes inputs_;
  std::map<std::string, void *> bound_;
  std::vector<Memory> unwanted_;
  Context context_{nullptr, {}};
};

std::unique_ptr<Run> TensorRtSession::prepare() const { return std::make_unique<BoundRun>(*this); }

}  // namespace

TensorRtBackend::TensorRtBackend(const std::string &name, const std::string &module_path, const std::string &library) {
  std::string why;
  auto *cuda = Cuda::find(why);  // first of all: without a driver the library crashes
  if (!cuda)
    throw Error("No GPU can be used: " + why + ". This needs a GPU with NVIDIA's driver; to draw without one leave the backend "
                "out.",
                RF_MISSING);
  auto &module = open_module(name, module_path);
  state_ = std::make_unique<State>(*cuda, name, module);
  std::string file = library.empty() ? module.library : library;
  Message error = "", version = "";
  state_->library = module.open(file.c_str(), version, sizeof version, error, sizeof error);
  if (!state_->library)
    throw Error(name + " cannot be opened: " + error + ". Expected " + module.library + ", where the system finds it or named in "
                "the options (library).",
                RF_MISSING);
  state_->version = version;
  auto built = version_numbers(module.headers), found = version_numbers(version);
  built.resize(2), found.resize(2);
  if (built[0] != found[0] || found < built)
    throw Error(file + " is " + name + " " + version + ", and the module was built with the headers of " + module.headers +
                    ": expected " + std::to_string(built[0]) + "." + std::to_string(built[1]) + " or a later " +
                    std::to_string(built[0]) + ".x. Install that, or build the module with the headers of " + version + ".",
                RF_MISMATCH);
  Cuda::Current current(*cuda);
  if (!module.start(state_->library, error, sizeof error))
    throw Error(name + " " + version + " does not start: " + or_else(error, "it gives no reason") + ".", RF_FAULT);
}

TensorRtBackend::~TensorRtBackend() = default;

std::string TensorRtBackend::words() const { return state_->name + " " + state_->version; }
std::string TensorRtBackend::provider() const { return state_->name; }
Target TensorRtBackend::target() const { return {state_->name, state_->version, state_->cuda.target()}; }

std::unique_ptr<Session> TensorRtBackend::open(const std::string &path, bool compiled) const {
  if (!compiled)
    throw Error(state_->name + " runs engines, and " + std::filesystem::path(path).filename().string() +
                    " is a graph. Build one: rf-export build-engine.",
                RF_MISMATCH);
  return std::make_unique<TensorRtSession>(*state_, path);
}

}  // namespace rf_internal
