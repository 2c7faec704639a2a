// libnvinfer of a machine with an emulated GPU (cuda.cpp), compiled with NVIDIA's headers of one version. Its plans are
// those of tests/emulation/building.py: JSON that names an ONNX file and the profiles, which the real ONNX Runtime on the
// CPU runs when the stream comes to it. What TensorRT asks of its caller is checked; what is wrong ends the program.
#include <NvInferRuntime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cuda.hpp"
#include "json.hpp"
#include "ort.hpp"
#include "stubs.hpp"

using namespace nvinfer1;
using rf_internal::Element;

namespace {

[[noreturn]] void crash(const std::string &why) {
  std::fprintf(stderr, "emulated TensorRT: %s\n", why.c_str());
  std::abort();
}

void require(bool is_true, const std::string &what) {
  if (!is_true) crash(what);
}

constexpr size_t kActivations = 3000;
constexpr bool kIsOld = NV_TENSORRT_MAJOR < 10;  // has no int64

template <class Sizes>
Dims dims_of(const Sizes &sizes) {
  Dims dims{};
  for (auto size : sizes) dims.d[dims.nbDims++] = decltype(dims.d[0] + 0)(size);
  return dims;
}

struct Plan {
  std::unique_ptr<rf_internal::Session> session;
  std::map<std::string, const rf_internal::TensorSpec *> tensors;
  std::vector<std::string> names;
  std::set<std::string> inputs;
  std::vector<std::map<std::string, std::vector<Dims>>> profiles;
  bool shares_profiles = false;
  std::multiset<int> taken;

  Element type(const std::string &name) const {
    auto &dtype = tensors.at(name)->dtype;
    return dtype == "float32" ? Element::float32 : dtype == "float16" ? Element::float16 : Element::int64;
  }
  bool is_narrow(const std::string &name) const { return kIsOld && type(name) == Element::int64; }
};

std::unique_ptr<Plan> read(const void *blob, size_t size) {
  auto json = rf_internal::parse_json(std::string(static_cast<const char *>(blob), size), "the plan");
  auto plan = std::make_unique<Plan>();
  auto &library = rf_internal::OrtLibrary::open(std::getenv("EMULATED_ONNXRUNTIME"));
  plan->session = std::make_unique<rf_internal::OrtSession>(library, *json["path"].text(), rf_internal::Threads{1, false},
                                                            false, rf_internal::Provider{}, rf_internal::host());
  auto &signature = plan->session->signature();
  for (auto *specs : {&signature.inputs, &signature.outputs})
    for (auto &spec : *specs) plan->tensors[spec.name] = &spec, plan->names.push_back(spec.name);
  for (auto &spec : signature.inputs) plan->inputs.insert(spec.name);
  plan->shares_profiles = json["shares_profiles"].is_true();
  for (auto &each : *json["profiles"].list()) {
    auto &profile = plan->profiles.emplace_back();
    for (auto &[name, ends] : *each.object())
      for (auto &end : *ends.list()) {
        std::vector<int64_t> sizes;
        for (auto &number : *end.list()) sizes.push_back(number.whole());
        profile[name].push_back(dims_of(sizes));
      }
  }
  return plan;
}

struct Work {  // a run, as it was when it was put on the stream
  Plan *plan;
  std::map<std::string, std::vector<int64_t>> shapes;
  std::map<std::string, void *> addresses;
  void *activations;
  size_t num_bytes;

  static void run(void *self) {
    std::unique_ptr<Work> work(static_cast<Work *>(self));
    std::memset(work->activations, 0xFF, work->num_bytes);  // what else lies there is lost
    auto run = work->plan->session->prepare();
    std::map<std::string, std::vector<int64_t>> wide;
    for (auto &name : work->plan->names) {
      auto &shape = work->shapes.at(name);
      auto type = work->plan->type(name);
      size_t count = rf_internal::num_elements(shape), size = count * rf_internal::num_bytes(type);
      void *data = work->addresses.at(name);
      require(emulated_is_device(data, size / (work->plan->is_narrow(name) ? 2 : 1)), name + " is not all on the device");
      bool is_input = work->plan->inputs.count(name);
      if (work->plan->is_narrow(name)) {
        auto *narrow = static_cast<int32_t *>(data);
        auto &values = wide[name];
        values.resize(count);
        for (size_t i = 0; is_input && i < count; ++i) values[i] = narrow[i];
        data = values.data();
      }
      if (is_input) run->input(name, {data, size, type, shape});
      else run->output(name, {data, size, type, shape});
    }
    run->start();
    for (auto &[name, values] : wide)
      for (size_t i = 0; !work->plan->inputs.count(name) && i < values.size(); ++i)
        static_cast<int32_t *>(work->addresses.at(name))[i] = int32_t(values[i]);
  }
};

class Context : public IExecutionContext, public ContextStub {
 public:
  explicit Context(Plan &plan) : plan_(plan) { mImpl = this; }
  ~Context() noexcept override {
    if (profile_ >= 0) plan_.taken.erase(plan_.taken.find(profile_));
  }
  IExecutionContext *getPImpl() noexcept override { return this; }

#ifdef HAS_setDeviceMemoryV2
  void setDeviceMemoryV2(void *memory, int64_t size) noexcept override { memory_ = memory, size_ = size_t(size); }
#else
  void setDeviceMemory(void *memory) noexcept override { memory_ = memory, size_ = kActivations; }
#endif
  bool setOptimizationProfileAsync(int32_t profile, cudaStream_t) noexcept override {
    if (plan_.taken.count(profile) && !plan_.shares_profiles) return false;
    plan_.taken.insert(profile_ = profile);
    return true;
  }
  bool setInputShape(char const *name, Dims const &dims) noexcept override {
    require(plan_.inputs.count(name) && profile_ >= 0, std::string(name) + " is no input, or there is no profile yet");
    auto &ends = plan_.profiles[size_t(profile_)].at(name);
    std::vector<int64_t> sizes(dims.d, dims.d + dims.nbDims);
    for (int32_t i = 0; i < dims.nbDims; ++i)
      if (dims.nbDims != ends[0].nbDims || dims.d[i] < ends[0].d[i] || ends[2].d[i] < dims.d[i]) return false;
    shapes_[name] = sizes;
    return true;
  }
  Dims getTensorShape(char const *name) const noexcept override { return dims_of(shape(name)); }
  bool setTensorAddress(char const *name, void *data) noexcept override {
    require(plan_.tensors.count(name), std::string("there is no tensor ") + name);
    require(reinterpret_cast<uintptr_t>(data) % 256 == 0, std::string(name) + " is off its boundary");
    addresses_[name] = data;
    return true;
  }
  bool enqueueV3(cudaStream_t stream) noexcept override {
    require(memory_ && size_ >= kActivations && emulated_is_device(memory_, size_), "there is no memory for activations");
    auto *work = new Work{&plan_, {}, addresses_, memory_, size_};
    for (auto &name : plan_.names) work->shapes[name] = shape(name);
    emulated_put(stream, Work::run, work);
    return true;
  }

 private:
  std::vector<int64_t> shape(const std::string &name) const {
    if (plan_.inputs.count(name)) return shapes_.at(name);
    std::map<std::string, int64_t> sizes;
    for (auto &[input, found] : shapes_)
      for (size_t i = 0; i < found.size(); ++i) sizes[plan_.tensors.at(input)->shape[i].name] = found[i];
    if (sizes.count("images"))  // features of a picture: patches of two by two
      sizes["tokens"] = sizes["height"] / cell() * (sizes["width"] / cell());
    std::vector<int64_t> shape;
    for (auto &dim : plan_.tensors.at(name)->shape) shape.push_back(dim.is_free() ? sizes.at(dim.name) : dim.size);
    return shape;
  }
  static int64_t cell() { return std::atoi(std::getenv("EMULATED_CELL")); }

  Plan &plan_;
  std::map<std::string, std::vector<int64_t>> shapes_;
  std::map<std::string, void *> addresses_;
  void *memory_ = nullptr;
  size_t size_ = 0;
  int profile_ = -1;
};

class Engine : public ICudaEngine, public EngineStub {
 public:
  explicit Engine(std::unique_ptr<Plan> plan) : plan_(std::move(plan)) { mImpl = this; }
  ~Engine() noexcept override { require(plan_->taken.empty(), "an engine is deleted before its contexts"); }
  ICudaEngine *getPImpl() noexcept override { return this; }

  int32_t getNbIOTensors() const noexcept override { return int32_t(plan_->names.size()); }
  char const *getIOTensorName(int32_t index) const noexcept override { return plan_->names[size_t(index)].c_str(); }
  TensorIOMode getTensorIOMode(char const *name) const noexcept override {
    return plan_->inputs.count(name) ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
  }
  DataType getTensorDataType(char const *name) const noexcept override {
    switch (plan_->type(name)) {
      case Element::float32: return DataType::kFLOAT;
      case Element::float16: return DataType::kHALF;
      default:
#if NV_TENSORRT_MAJOR >= 10
        return DataType::kINT64;
#else
        return DataType::kINT32;
#endif
    }
  }
  Dims getTensorShape(char const *name) const noexcept override {
    std::vector<int64_t> shape;
    for (auto &dim : plan_->tensors.at(name)->shape) shape.push_back(dim.is_free() ? -1 : dim.size);
    return dims_of(shape);
  }
  int32_t getNbOptimizationProfiles() const noexcept override { return int32_t(plan_->profiles.size()); }
  Dims getProfileShape(char const *name, int32_t profile, OptProfileSelector select) const noexcept override {
    return plan_->profiles[size_t(profile)].at(name)[size_t(select)];
  }
#ifdef HAS_getAliasedInputTensor
  char const *getAliasedInputTensor(char const *name) const noexcept override {
    std::string input = name;
    if (input.rfind("present", 0)) return nullptr;
    auto found = plan_->inputs.find("past_key_values" + input.substr(strlen("present")));
    bool in_place = found != plan_->inputs.end() && plan_->tensors.at(*found)->shape[2] == plan_->tensors.at(name)->shape[2];
    return in_place ? found->c_str() : nullptr;
  }
#endif
#ifdef HAS_getStreamableWeightsSize
  int64_t getStreamableWeightsSize() const noexcept override { return 0; }
#endif
#ifdef HAS_getDeviceMemorySizeV2
  int64_t getDeviceMemorySizeV2() const noexcept override { return kActivations; }
#else
  size_t getDeviceMemorySize() const noexcept override { return kActivations; }
#endif
#if NV_TENSORRT_MAJOR >= 10
  IExecutionContext *createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override {
    require(strategy == ExecutionContextAllocationStrategy::kUSER_MANAGED, "a context would have activations of its own");
    return new Context(*plan_);
  }
#else
  IExecutionContext *createExecutionContextWithoutDeviceMemory() noexcept override { return new Context(*plan_); }
#endif

 private:
  std::unique_ptr<Plan> plan_;
};

class Runtime : public IRuntime, public RuntimeStub {
 public:
  explicit Runtime(ILogger &logger) : logger_(logger) { mImpl = this; }
  IRuntime *getPImpl() noexcept override { return this; }
  void setEngineHostCodeAllowed(bool) noexcept override {}

#if NV_TENSORRT_MAJOR >= 10
  using RuntimeStub::deserializeCudaEngine;
  ICudaEngine *deserializeCudaEngine(void const *blob, std::size_t size) noexcept override { return loaded(blob, size); }
#else
  ICudaEngine *deserializeCudaEngine(void const *blob, std::size_t size, IPluginFactory *) noexcept override {
    return loaded(blob, size);
  }
#endif

 private:
  ICudaEngine *loaded(void const *blob, std::size_t size) noexcept {
    try {
      return new Engine(read(blob, size));
    } catch (const std::exception &) {
      logger_.log(ILogger::Severity::kERROR, "Magic tag does not match");
      return nullptr;
    }
  }
  ILogger &logger_;
};

}  // namespace

extern "C" {
__attribute__((visibility("default"))) int32_t getInferLibVersion() noexcept {
  const char *given = std::getenv("EMULATED_TENSORRT");  // such as 110100
  return given ? std::atoi(given)
               : NV_TENSORRT_MAJOR * (kIsOld ? 1000 : 10000) + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH;
}
#if NV_TENSORRT_MAJOR >= 10
__attribute__((visibility("default"))) int32_t getInferLibBuildVersion() noexcept { return 9; }
#endif
__attribute__((visibility("default"))) void *createInferRuntime_INTERNAL(void *logger, int32_t version) noexcept {
  require(version == NV_TENSORRT_VERSION, "the runtime is made for another version");
  return static_cast<IRuntime *>(new Runtime(*static_cast<ILogger *>(logger)));
}
}
