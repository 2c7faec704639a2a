#include "providers.hpp"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "cuda.hpp"
#include "error.hpp"
#include "ort.hpp"

namespace rf_internal {
namespace {

[[noreturn]] void refuse(const OrtLibrary &library, const Provider &provider, const std::string &why) {
  throw Error("ONNX Runtime " + library.version() + " cannot run on the execution provider " + provider.name + ": " + why +
                  ". Install the ONNX Runtime and the driver that it needs, or leave the provider out to draw on the CPU.",
              RF_MISSING);
}

// Raises what a status says of a provider.
void require(const OrtLibrary &library, const Provider &provider, ort::Status *status) {
  if (!status) return;
  std::string why = library.api().GetErrorMessage(status);
  library.api().ReleaseStatus(status);
  while (!why.empty() && std::strchr(". \n", why.back())) why.pop_back();
  refuse(library, provider, why);
}

void register_plugin(const OrtLibrary &library, const Provider &provider) {
  static std::mutex mutex;
  static std::set<std::string> registered;  // in the one environment of the process
  std::lock_guard<std::mutex> lock(mutex);
  if (registered.count(provider.library)) return;
  auto *plugins = library.plugins();
  require(library, provider,
          plugins->RegisterExecutionProviderLibrary(library.env(), provider.library.c_str(),
                                                    std::filesystem::absolute(provider.library).c_str()));
  registered.insert(provider.library);
}

std::vector<const ort::EpDevice *> devices_of(const OrtLibrary &library, const Provider &provider) {
  const ort::EpDevice *const *all = nullptr;
  size_t count = 0;
  require(library, provider, library.plugins()->GetEpDevices(library.env(), &all, &count));
  std::vector<const ort::EpDevice *> found;
  for (size_t i = 0; i < count && found.empty(); ++i)  // the first device
    if (provider.name == library.plugins()->EpDevice_EpName(all[i])) found.push_back(all[i]);
  return found;
}

void use_cuda(const OrtLibrary &library, ort::SessionOptions *options, const Provider &provider) {
  auto &api = library.api();
  ort::CudaOptions *made = nullptr;
  require(library, provider, api.CreateCUDAProviderOptions(&made));
  std::unique_ptr<ort::CudaOptions, void (*)(ort::CudaOptions *)> cuda(made, api.ReleaseCUDAProviderOptions);
  // TF32 would round the products of fp32 graphs to 10 bits, and is on where it is not refused.
  const char *key = "use_tf32", *value = "0";
  require(library, provider, api.UpdateCUDAProviderOptions(made, &key, &value, 1));
  require(library, provider, api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, made));
}

void use_tensorrt(const OrtLibrary &library, ort::SessionOptions *options, const Provider &provider) {
  auto &api = library.api();
  ort::TensorRtOptions *made = nullptr;
  require(library, provider, api.CreateTensorRTProviderOptions(&made));
  std::unique_ptr<ort::TensorRtOptions, void (*)(ort::TensorRtOptions *)> rt(made, api.ReleaseTensorRTProviderOptions);
  require(library, provider, api.SessionOptionsAppendExecutionProvider_TensorRT_V2(options, made));
}

// All of NVIDIA's have one of these words in their names, those of plugins too.
bool is_nvidia(const Provider &provider) {
  std::string name = provider.name;
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char each) { return char(std::tolower(each)); });
  return name.find("cuda") != std::string::npos || name.find("tensorrt") != std::string::npos;
}

}  // namespace

const Device &device_of(const OrtLibrary &library, const Provider &provider) {
  if (!is_nvidia(provider)) return host();
  std::string why;
  auto *cuda = Cuda::find(why);
  if (!cuda) refuse(library, provider, why);
  return *cuda;
}

void use_provider(const OrtLibrary &library, ort::SessionOptions *options, const Provider &provider) {
  if (provider.is_cpu()) return;
  auto *plugins = library.plugins();
  if (!provider.library.empty()) {
    if (!plugins) refuse(library, provider, "plugins came with 1.22");
    register_plugin(library, provider);
  }
  auto devices = plugins ? devices_of(library, provider) : std::vector<const ort::EpDevice *>();
  if (!devices.empty())
    return require(library, provider,
                   plugins->SessionOptionsAppendExecutionProvider_V2(options, library.env(), devices.data(),
                                                                     devices.size(), nullptr, nullptr, 0));
  if (!provider.library.empty()) refuse(library, provider, provider.library + " finds no device for it");
  if (provider.name == "CUDA") return use_cuda(library, options, provider);
  if (provider.name == "TensorRT") return use_tensorrt(library, options, provider);
  require(library, provider,
          library.api().SessionOptionsAppendExecutionProvider(options, provider.name.c_str(), nullptr, nullptr, 0));
}

}  // namespace rf_internal
