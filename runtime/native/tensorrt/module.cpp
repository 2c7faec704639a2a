// librf_tensorrt: TensorRT or TensorRT-RTX behind the table of module.h. Compiled with NVIDIA's headers of one version, for
// its library of the same major version and of the same or a later minor one: tables of virtual functions only grow. What
// a version has is asked of its headers by name. Knows nothing of models.
#include "module.h"

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <string>

namespace {

namespace nv = nvinfer1;

#define RF_TEXT_OF(value) #value
#define RF_TEXT(value) RF_TEXT_OF(value)
#define RF_HEADERS RF_TEXT(NV_TENSORRT_MAJOR) "." RF_TEXT(NV_TENSORRT_MINOR) "." RF_TEXT(NV_TENSORRT_PATCH)

void tell(char *error, size_t room, const std::string &what) { std::snprintf(error, room, "%s", what.c_str()); }

class Logger : public nv::ILogger {
 public:
  void log(Severity severity, const char *message) noexcept override try {
    if (severity > Severity::kERROR) return;
    std::lock_guard<std::mutex> lock(mutex_);
    last_ = message;
  } catch (const std::exception &) {  // no memory for it
  }

  std::string last() {
    std::lock_guard<std::mutex> lock(mutex_);
    return last_;
  }

 private:
  std::mutex mutex_;
  std::string last_;
};

Logger logger;  // the library keeps the first one that it is handed

struct Library {
  void *handle;
  std::unique_ptr<nv::IRuntime> runtime;
};

nv::ICudaEngine &engine_of(void *engine) { return *static_cast<nv::ICudaEngine *>(engine); }
nv::IExecutionContext &context_of(void *context) { return *static_cast<nv::IExecutionContext *>(context); }

// For each of these the first function is taken where the headers have what it calls.
template <class E>
auto device_memory(E &engine, int) -> decltype(int64_t(engine.getDeviceMemorySizeV2())) { return engine.getDeviceMemorySizeV2(); }
template <class E>
int64_t device_memory(E &engine, long) { return int64_t(engine.getDeviceMemorySize()); }

template <class C>
auto give_memory(C &context, void *memory, int64_t num_bytes, int) -> decltype(context.setDeviceMemoryV2(memory, num_bytes)) {
  context.setDeviceMemoryV2(memory, num_bytes);
}
template <class C>
void give_memory(C &context, void *memory, int64_t, long) { context.setDeviceMemory(memory); }

template <class E>
auto written_over(E &engine, const char *name, int) -> decltype(engine.getAliasedInputTensor(name)) {
  return engine.getAliasedInputTensor(name);
}
template <class E>
const char *written_over(E &, const char *, long) { return nullptr; }

template <class E>
auto stream_weights(E &engine, int) -> decltype(engine.setWeightStreamingBudgetV2(engine.getWeightStreamingAutomaticBudget()), void()) {
  if (engine.getStreamableWeightsSize() > 0) engine.setWeightStreamingBudgetV2(engine.getWeightStreamingAutomaticBudget());
}
template <class E>
void stream_weights(E &, long) {}

#if defined(TRT_MAJOR_RTX)
// It compiles kernels for a shape in the background and changes to them later, unless told to do it at once.
nv::IExecutionContext *new_context(nv::ICudaEngine &engine) {
  std::unique_ptr<nv::IRuntimeConfig> config(engine.createRuntimeConfig());
  if (!config) return nullptr;
  config->setExecutionContextAllocationStrategy(nv::ExecutionContextAllocationStrategy::kUSER_MANAGED);
  config->setDynamicShapesKernelSpecializationStrategy(nv::DynamicShapesKernelSpecializationStrategy::kEAGER);
  return engine.createExecutionContext(config.get());
}
#elif NV_TENSORRT_MAJOR >= 10
nv::IExecutionContext *new_context(nv::ICudaEngine &engine) {
  return engine.createExecutionContext(nv::ExecutionContextAllocationStrategy::kUSER_MANAGED);
}
#else
nv::IExecutionContext *new_context(nv::ICudaEngine &engine) { return engine.createExecutionContextWithoutDeviceMemory(); }
#endif

int32_t onnx_type(nv::DataType type) {
  switch (type) {
    case nv::DataType::kFLOAT: return 1;
    case nv::DataType::kINT32: return 6;
#if NV_TENSORRT_MAJOR >= 10 || defined(TRT_MAJOR_RTX)
    case nv::DataType::kINT64: return 7;
#endif
    case nv::DataType::kHALF: return 10;
    default: return 0;
  }
}

template <class Sizes>
int32_t put(const nv::Dims &dims, Sizes &sizes) {
  int32_t count = std::min<int32_t>(std::max<int32_t>(dims.nbDims, 0), RF_TENSORRT_DIMS);
  for (int32_t i = 0; i < count; ++i) sizes[i] = dims.d[i];
  return count;
}

// 10.13.3 is 101303 from 10.0 on, and 8.6.1 was 8601; only the former tell their build.
std::string version_of(void *handle) {
  auto whole = reinterpret_cast<int32_t (*)()>(dlsym(handle, "getInferLibVersion"));
  auto build = reinterpret_cast<int32_t (*)()>(dlsym(handle, "getInferLibBuildVersion"));
  if (!whole) return "";
  int32_t number = whole(), step = number >= 10000 ? 10000 : 1000;
  std::string text = std::to_string(number / step) + "." + std::to_string(number % step / 100) + "." + std::to_string(number % 100);
  return build ? text + "." + std::to_string(build()) : text;
}

void *open(const char *path, char *version, size_t version_room, char *error, size_t room) {
  void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!handle) return tell(error, room, dlerror()), nullptr;
  std::string found = version_of(handle);
  if (found.empty()) return tell(error, room, std::string(path) + " has no getInferLibVersion"), nullptr;
  tell(version, version_room, found);
  return new Library{handle, nullptr};
}

int32_t start(void *library, char *error, size_t room) {
  auto &self = *static_cast<Library *>(library);
  // It takes the version of the headers, and compares it with nothing that would keep it from failing later.
  auto create = reinterpret_cast<void *(*)(void *, int32_t)>(dlsym(self.handle, "createInferRuntime_INTERNAL"));
  if (create) self.runtime.reset(static_cast<nv::IRuntime *>(create(&logger, NV_TENSORRT_VERSION)));
  if (!self.runtime) return tell(error, room, create ? logger.last() : "it has no createInferRuntime_INTERNAL"), 0;
  self.runtime->setEngineHostCodeAllowed(true);  // engines that run on later versions bring code; engine.json has its hash
  return 1;
}

void close(void *library) { delete static_cast<Library *>(library); }

void *load(void *library, const void *plan, size_t num_bytes, char *error, size_t room) {
  auto *engine = static_cast<Library *>(library)->runtime->deserializeCudaEngine(plan, num_bytes);
  if (!engine) return tell(error, room, logger.last()), nullptr;
  stream_weights(*engine, 0);
  return engine;
}

void unload(void *engine) { delete static_cast<nv::ICudaEngine *>(engine); }

int32_t num_tensors(void *engine) { return engine_of(engine).getNbIOTensors(); }

void tensor(void *engine, int32_t index, rf_trt_tensor *out) {
  auto &self = engine_of(engine);
  out->name = self.getIOTensorName(index);
  out->is_input = self.getTensorIOMode(out->name) == nv::TensorIOMode::kINPUT;
  out->type = onnx_type(self.getTensorDataType(out->name));
  out->num_dims = put(self.getTensorShape(out->name), out->shape);
  out->written_over = out->is_input ? nullptr : written_over(self, out->name, 0);
}

int32_t num_profiles(void *engine) { return engine_of(engine).getNbOptimizationProfiles(); }

void range(void *engine, const char *input, int32_t profile, rf_trt_shape shapes[3]) {
  nv::OptProfileSelector ends[] = {nv::OptProfileSelector::kMIN, nv::OptProfileSelector::kOPT, nv::OptProfileSelector::kMAX};
  for (int i = 0; i < 3; ++i)
    shapes[i].num_dims = put(engine_of(engine).getProfileShape(input, profile, ends[i]), shapes[i].sizes);
}

int64_t activation_bytes(void *engine) { return device_memory(engine_of(engine), 0); }

void *create_context(void *engine, char *error, size_t room) {
  auto *context = new_context(engine_of(engine));
  if (!context) tell(error, room, logger.last());
  return context;
}

void release_context(void *context) { delete static_cast<nv::IExecutionContext *>(context); }

int32_t use(void *context, int32_t profile, void *activations, int64_t num_bytes, void *stream) {
  give_memory(context_of(context), activations, num_bytes, 0);
  return context_of(context).setOptimizationProfileAsync(profile, static_cast<cudaStream_t>(stream));
}

int32_t set_shape(void *context, const char *input, const rf_trt_shape *shape) {
  nv::Dims dims{};
  dims.nbDims = shape->num_dims;
  for (int32_t i = 0; i < shape->num_dims; ++i) dims.d[i] = decltype(dims.d[0] + 0)(shape->sizes[i]);
  return context_of(context).setInputShape(input, dims);
}

int32_t set_address(void *context, const char *tensor, void *address) {
  return context_of(context).setTensorAddress(tensor, address);
}

void shape(void *context, const char *tensor, rf_trt_shape *out) {
  out->num_dims = put(context_of(context).getTensorShape(tensor), out->sizes);
}

int32_t enqueue(void *context, void *stream) { return context_of(context).enqueueV3(static_cast<cudaStream_t>(stream)); }

void last_error(char *error, size_t room) { tell(error, room, logger.last()); }

}  // namespace

extern "C" __attribute__((visibility("default"))) const rf_trt_module *rf_tensorrt_module(void) {
  static const rf_trt_module module = {
      RF_TENSORRT_ABI,
#if defined(TRT_MAJOR_RTX)
      "tensorrt-rtx", RF_HEADERS, "libtensorrt_rtx.so." RF_TEXT(NV_TENSORRT_MAJOR),
#else
      "tensorrt", RF_HEADERS, "libnvinfer.so." RF_TEXT(NV_TENSORRT_MAJOR),
#endif
      open, start, close, load, unload, num_tensors, tensor, num_profiles, range, activation_bytes, create_context,
      release_context, use, set_shape, set_address, shape, enqueue, last_error};
  return &module;
}
