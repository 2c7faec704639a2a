// A library in front of the real ONNX Runtime, which EMULATED_ONNXRUNTIME names, on a machine with an emulated GPU
// (cuda.cpp): it has the providers of NVIDIA, whose kernels are those of the CPU, and whose memory is the GPU's. A value
// that is made of the wrong memory ends the program.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>

#include "cuda.hpp"
#include "ort_api.hpp"

using namespace rf_internal::ort;

namespace {

enum Place {
#define PLACE(position, name, ...) k##name = position,
  RF_ORT_FUNCTIONS(PLACE) RF_ORT_PLUGIN_FUNCTIONS(PLACE)
#undef PLACE
};
constexpr size_t kSize = kGetBuildInfoString + 1, kPluginSize = kEpDevice_EpName + 1;

Api real;
PluginApi real_plugins;
std::mutex mutex;
std::set<const MemoryInfo *> of_gpu;
bool has_plugin = false;

Status *create_memory_info(const char *name, int allocator, int device, int memory, MemoryInfo **info) {
  if (std::strcmp(name, "Cuda")) return real.CreateMemoryInfo(name, allocator, device, memory, info);
  Status *status = real.CreateCpuMemoryInfo(allocator, memory, info);
  std::lock_guard<std::mutex> lock(mutex);
  of_gpu.insert(*info);
  return status;
}

void release_memory_info(MemoryInfo *info) {
  {
    std::lock_guard<std::mutex> lock(mutex);
    of_gpu.erase(info);
  }
  real.ReleaseMemoryInfo(info);
}

Status *create_tensor(const MemoryInfo *info, void *data, size_t num_bytes, const int64_t *shape, size_t num_dims, int type,
                      Value **value) {
  std::unique_lock<std::mutex> lock(mutex);
  if (emulated_is_device(data, num_bytes) != int(of_gpu.count(info))) {
    std::fprintf(stderr, "emulated GPU: a tensor of %zu bytes is not in the memory that it is said to be in\n", num_bytes);
    std::abort();
  }
  lock.unlock();
  return real.CreateTensorWithDataAsOrtValue(info, data, num_bytes, shape, num_dims, type, value);
}

Status *run(Session *session, const RunOptions *options, const IoBinding *binding) {
  emulated_open();
  Status *status = real.RunWithBinding(session, options, binding);
  emulated_close();
  return status;
}

Status *append_cuda(SessionOptions *, const CudaOptions *) { return nullptr; }
Status *create_cuda(CudaOptions **options) { return *options = reinterpret_cast<CudaOptions *>(new int), nullptr; }
Status *update_cuda(CudaOptions *, const char *const *keys, const char *const *values, size_t count) {
  if (count != 1 || std::strcmp(keys[0], "use_tf32") || std::strcmp(values[0], "0")) std::abort();
  return nullptr;
}
void release_cuda(CudaOptions *options) { delete reinterpret_cast<int *>(options); }
Status *append_tensorrt(SessionOptions *, const TensorRtOptions *) { return nullptr; }
Status *create_tensorrt(TensorRtOptions **options) { return *options = reinterpret_cast<TensorRtOptions *>(new int), nullptr; }
void release_tensorrt(TensorRtOptions *options) { delete reinterpret_cast<int *>(options); }

Status *register_plugin(Env *, const char *, const char *) { return has_plugin = true, nullptr; }
const char *name_of(const EpDevice *device) {
  return has_plugin ? "NvTensorRTRTXExecutionProvider" : real_plugins.EpDevice_EpName(device);
}
Status *append_plugin(SessionOptions *options, Env *env, const EpDevice *const *devices, size_t count,
                      const char *const *keys, const char *const *values, size_t num_values) {
  if (has_plugin) return nullptr;
  return real_plugins.SessionOptionsAppendExecutionProvider_V2(options, env, devices, count, keys, values, num_values);
}

const ApiBase *real_base() {
  static const ApiBase *base = [] {
    const char *path = std::getenv("EMULATED_ONNXRUNTIME");
    void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!library) std::abort();
    return reinterpret_cast<const ApiBase *(*)()>(dlsym(library, "OrtGetApiBase"))();
  }();
  return base;
}

const void *const *get_api(uint32_t version) {
  static const void *table[kSize], *plugin_table[kPluginSize];
  const void *const *found = real_base()->get_api(version);
  if (!found) return nullptr;
  const void **mine = version < kPluginApiVersion ? table : plugin_table;
  std::memcpy(mine, found, (version < kPluginApiVersion ? kSize : kPluginSize) * sizeof(void *));
  auto put = [&](size_t place, auto function) { mine[place] = reinterpret_cast<const void *>(function); };
  if (version >= kPluginApiVersion) {
#define TAKE(position, name, ...) std::memcpy(&real_plugins.name, &found[position], sizeof(void *));
    RF_ORT_PLUGIN_FUNCTIONS(TAKE)
#undef TAKE
    put(kRegisterExecutionProviderLibrary, register_plugin), put(kEpDevice_EpName, name_of);
    put(kSessionOptionsAppendExecutionProvider_V2, append_plugin);
    return mine;
  }
#define TAKE(position, name, ...) std::memcpy(&real.name, &found[position], sizeof(void *));
  RF_ORT_FUNCTIONS(TAKE)
#undef TAKE
  put(kCreateMemoryInfo, create_memory_info), put(kReleaseMemoryInfo, release_memory_info);
  put(kCreateTensorWithDataAsOrtValue, create_tensor), put(kRunWithBinding, run);
  put(kSessionOptionsAppendExecutionProvider_CUDA_V2, append_cuda), put(kCreateCUDAProviderOptions, create_cuda);
  put(kUpdateCUDAProviderOptions, update_cuda), put(kReleaseCUDAProviderOptions, release_cuda);
  put(kSessionOptionsAppendExecutionProvider_TensorRT_V2, append_tensorrt);
  put(kCreateTensorRTProviderOptions, create_tensorrt), put(kReleaseTensorRTProviderOptions, release_tensorrt);
  return mine;
}

}  // namespace

extern "C" const ApiBase *OrtGetApiBase() {
  static const ApiBase base = {get_api, real_base()->get_version};
  return &base;
}
