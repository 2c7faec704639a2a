#include "ort.hpp"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>

#include "error.hpp"
#include "machine.hpp"
#include "utf8.hpp"

namespace rf_internal {
namespace {

bool is_out_of_memory(const std::string &what) {
  for (const char *sign : {"Failed to allocate memory", "bad_alloc", "bad allocation"})
    if (what.find(sign) != std::string::npos) return true;
  return false;
}

const char *type_name(int type) {
  switch (Element(type)) {
    case Element::float32: return "float32";
    case Element::float16: return "float16";
    case Element::int64: return "int64";
    default: return "another type";
  }
}

void *opened(const std::string &path) {
  // Its official builds write a device id and call their maker while a graph runs: a device at the edge is silent.
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  const char *named = std::getenv("RF_ONNXRUNTIME");
  std::vector<std::string> names = {"libonnxruntime.so.1", "libonnxruntime.so"};
  if (!path.empty()) names = {path};
  else if (named && *named) names = {named};
  std::string problem;
  for (auto &name : names) {
    if (void *library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    problem = dlerror();
  }
  throw Error("ONNX Runtime cannot be opened: " + problem + ". Name its shared library, of ONNX Runtime 1.18 or newer, in "
              "the options (library) or in RF_ONNXRUNTIME; the package onnxruntime of Python has it in "
              "onnxruntime/capi.",
              RF_MISSING);
}

}  // namespace

const OrtLibrary &OrtLibrary::open(const std::string &path) {
  static std::mutex mutex;
  static const OrtLibrary *library = nullptr;  // never unloaded: its threads outlive every pipeline
  std::lock_guard<std::mutex> lock(mutex);
  if (!library) library = new OrtLibrary(path);
  return *library;
}

OrtLibrary::OrtLibrary(const std::string &path) {
  void *library = opened(path);
  auto get_base = reinterpret_cast<const ort::ApiBase *(*)()>(dlsym(library, "OrtGetApiBase"));
  if (!get_base) throw Error((path.empty() ? "The library" : path) + " is not ONNX Runtime. Name its shared library.", RF_MISSING);
  version_ = get_base()->get_version();
  const void *const *table = get_base()->get_api(ort::kApiVersion);
  if (!table)
    throw Error("ONNX Runtime " + version_ + " is too old: 1.18 or newer is needed. Install a newer one.", RF_MISSING);
#define RF_ORT_TAKE(position, name, ...) std::memcpy(&api_.name, &table[position], sizeof(void *));
  RF_ORT_FUNCTIONS(RF_ORT_TAKE)
#undef RF_ORT_TAKE
  if (std::strtol(version_.c_str() + 2, nullptr, 10) >= long(ort::kPluginApiVersion) || version_[0] > '1') {
    table = get_base()->get_api(ort::kPluginApiVersion);
    has_plugins_ = table != nullptr;
  }
#define RF_ORT_TAKE(position, name, ...) std::memcpy(&plugin_api_.name, &table[position], sizeof(void *));
  if (has_plugins_) {
    RF_ORT_PLUGIN_FUNCTIONS(RF_ORT_TAKE)
  }
#undef RF_ORT_TAKE
  check(api_.CreateEnv(ort::kErrorsOnly, "rf", &env_));
  const char *telemetry = std::getenv("ORT_DISABLE_TELEMETRY");
  if (telemetry && std::strcmp(telemetry, "0")) check(api_.DisableTelemetryEvents(env_));
}

Target OrtLibrary::target() const {
  std::string build = api_.GetBuildInfoString(), key = "git-commit-id=", commit;
  size_t at = build.find(", " + key);
  if (at != std::string::npos) commit = build.substr(at + 2 + key.size(), build.find(", ", at + 2) - at - 2 - key.size());
  return {"ort", commit.empty() ? version_ : version_ + " " + commit, cpu_features()};
}

void OrtLibrary::check(ort::Status *status, const std::string &doing) const {
  if (!status) return;
  std::string what = api_.GetErrorMessage(status);
  api_.ReleaseStatus(status);
  if (is_out_of_memory(what)) throw std::bad_alloc();
  if (doing.empty()) throw Error("ONNX Runtime " + version_ + " failed: " + what, RF_FAULT);
  throw Error("ONNX Runtime " + version_ + " cannot load " + doing + ": " + what +
                  " Install a newer onnxruntime, or export the bundle again.",
              RF_DAMAGED);
}

OrtSession::OrtSession(const OrtLibrary &library, const std::string &path, const Threads &threads, bool compiled,
                       const Provider &provider, const Device &device)
    : library_(library), device_(device), process_(getpid()), is_on_cpu_(provider.is_cpu()) {
  if (!is_utf8(path)) throw Error("ONNX Runtime opens no file whose path is not UTF-8: " + quoted(path) + ". Rename it.");
  auto &api = library.api();
  ort::SessionOptions *made = nullptr;
  library.check(api.CreateSessionOptions(&made));
  std::unique_ptr<ort::SessionOptions, void (*)(ort::SessionOptions *)> options(made, api.ReleaseSessionOptions);
  // 0 is a thread per core of the whole machine, each bound to its core, whatever this process may use.
  library.check(api.SetIntraOpNumThreads(made, threads.num ? threads.num : is_confined() ? usable_cores() : 0));
  library.check(api.SetSessionLogSeverityLevel(made, ort::kErrorsOnly));
  // From the second run of a shape on, a pattern would take all its memory once more in one block; no run is faster.
  library.check(api.DisableMemPattern(made));
  library.check(api.AddSessionConfigEntry(made, "session.intra_op.allow_spinning", threads.may_spin ? "1" : "0"));
  // INT8 weights times inputs that are rounded to INT8 by block: the way that has kernels for VNNI and AMX.
  library.check(api.AddSessionConfigEntry(made, "session.qdq_matmulnbits_accuracy_level", "4"));
  if (compiled) library.check(api.SetSessionGraphOptimizationLevel(made, ort::kNone));
  use_provider(library, made, provider);
  library.check(api.CreateSession(library.env(), path.c_str(), made, &session_),
                path + (is_on_cpu_ ? "" : " on the execution provider " + provider.name));
  try {
    signature_ = {read(true), read(false)};
  } catch (...) {
    api.ReleaseSession(session_);
    throw;
  }
}

OrtSession::~OrtSession() {
  if (process_ == getpid()) library_.api().ReleaseSession(session_);  // its threads stayed with the parent
}

std::vector<TensorSpec> OrtSession::read(bool is_input) const {
  auto &api = library_.api();
  size_t count = 0;
  library_.check((is_input ? api.SessionGetInputCount : api.SessionGetOutputCount)(session_, &count));
  ort::Allocator *allocator = nullptr;
  library_.check(api.GetAllocatorWithDefaultOptions(&allocator));
  std::vector<TensorSpec> specs;
  for (size_t i = 0; i < count; ++i) {
    TensorSpec spec;
    char *name = nullptr;
    library_.check((is_input ? api.SessionGetInputName : api.SessionGetOutputName)(session_, i, allocator, &name));
    spec.name = name;
    library_.check(api.AllocatorFree(allocator, name));
    ort::TypeInfo *made = nullptr;
    library_.check((is_input ? api.SessionGetInputTypeInfo : api.SessionGetOutputTypeInfo)(session_, i, &made));
    std::unique_ptr<ort::TypeInfo, void (*)(ort::TypeInfo *)> type(made, api.ReleaseTypeInfo);
    const ort::TensorInfo *info = nullptr;
    library_.check(api.CastTypeInfoToTensorInfo(made, &info));
    int element = 0;
    size_t num_dims = 0;
    if (info) {
      library_.check(api.GetTensorElementType(info, &element));
      library_.check(api.GetDimensionsCount(info, &num_dims));
      std::vector<int64_t> sizes(num_dims);
      std::vector<const char *> names(num_dims);
      library_.check(api.GetDimensions(info, sizes.data(), num_dims));
      library_.check(api.GetSymbolicDimensions(info, names.data(), num_dims));
      for (size_t d = 0; d < num_dims; ++d)
        spec.shape.push_back(sizes[d] >= 0 ? Dim{sizes[d], ""} : Dim{0, names[d] && *names[d] ? names[d] : "?"});
    }
    spec.dtype = type_name(element);
    specs.push_back(std::move(spec));
  }
  return specs;
}

class OrtSession::BoundRun : public Run {
 public:
  explicit BoundRun(const OrtSession &session) : session_(session), library_(session.library_), api_(library_.api()) {
    // The arena's allocator, memory of the default kind; or the first GPU's, of no allocator of theirs.
    library_.check(is_on_host() ? api_.CreateCpuMemoryInfo(1, 0, &memory_) : api_.CreateMemoryInfo("Cuda", 0, 0, 0, &memory_));
    library_.check(api_.CreateIoBinding(session.session_, &binding_));
  }

  ~BoundRun() override {
    for (auto value : values_) api_.ReleaseValue(value);
    if (binding_) api_.ReleaseIoBinding(binding_);
    if (memory_) api_.ReleaseMemoryInfo(memory_);
  }

  void input(const std::string &name, const Tensor &tensor) override {
    auto made = value(tensor);
    library_.check(api_.BindInput(binding_, name.c_str(), made));
    if (is_on_host() && !session_.is_on_cpu_) copied_.emplace_back(name, made);
  }

  void output(const std::string &name, const Tensor &tensor) override {
    library_.check(api_.BindOutput(binding_, name.c_str(), value(tensor)));
  }

  void start() override {
    for (auto &[name, input] : copied_)  // a device has what was there when it was bound
      library_.check(api_.BindInput(binding_, name.c_str(), input));
    // A GPU's provider has a stream of its own, and waits for no other. The end of a run waits for that stream, but for
    // providers of which it need not (SynchronizeBoundOutputs, onnxruntime_c_api.h).
    if (!is_on_host()) session_.device_.wait();
    library_.check(api_.RunWithBinding(session_.session_, nullptr, binding_));
    if (!is_on_host()) library_.check(api_.SynchronizeBoundOutputs(binding_));
  }

 private:
  bool is_on_host() const { return session_.device_.is_host(); }
  ort::Value *value(const Tensor &tensor) {
    ort::Value *value = nullptr;
    library_.check(api_.CreateTensorWithDataAsOrtValue(memory_, tensor.data, tensor.num_bytes, tensor.shape.data(),
                                                       tensor.shape.size(), int(tensor.type), &value));
    values_.push_back(value);
    return value;
  }

  const OrtSession &session_;
  const OrtLibrary &library_;
  const ort::Api &api_;
  ort::MemoryInfo *memory_ = nullptr;
  ort::IoBinding *binding_ = nullptr;
  std::vector<ort::Value *> values_;
  std::vector<std::pair<std::string, ort::Value *>> copied_;  // inputs, where a device has copies of them
};

std::unique_ptr<Run> OrtSession::prepare() const { return std::make_unique<BoundRun>(*this); }

}  // namespace rf_internal
