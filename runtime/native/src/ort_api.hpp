// The part of ONNX Runtime's C API that this library calls, declared by position.
//
// The API is a table of function pointers whose order never changes: entries are only added at its end. So the table of
// any version can be used through this declaration, and no header of theirs is needed, which no Python wheel and few
// distributions have. The positions are those that the bindings of other languages use.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rf_internal::ort {

struct Status;
struct Env;
struct Session;
struct SessionOptions;
struct RunOptions;
struct Value;
struct MemoryInfo;
struct IoBinding;
struct Allocator;
struct TypeInfo;
struct TensorInfo;
struct CudaOptions;
struct TensorRtOptions;
struct EpDevice;

constexpr uint32_t kApiVersion = 18;  // the oldest table that is asked for; every later library has it
enum Logging : int { kErrorsOnly = 3 };
enum Optimisation : int { kNone = 0 };

struct ApiBase {
  const void *const *(*get_api)(uint32_t version);
  const char *(*get_version)();
};

// position, name, result, parameters
#define RF_ORT_FUNCTIONS(F)                                                                                        \
  F(2, GetErrorMessage, const char *, const Status *)                                                              \
  F(3, CreateEnv, Status *, int level, const char *name, Env **)                                                   \
  F(6, DisableTelemetryEvents, Status *, const Env *)                                                              \
  F(7, CreateSession, Status *, const Env *, const char *path, const SessionOptions *, Session **)                 \
  F(10, CreateSessionOptions, Status *, SessionOptions **)                                                         \
  F(17, DisableMemPattern, Status *, SessionOptions *)                                                             \
  F(22, SetSessionLogSeverityLevel, Status *, SessionOptions *, int)                                               \
  F(23, SetSessionGraphOptimizationLevel, Status *, SessionOptions *, int)                                         \
  F(24, SetIntraOpNumThreads, Status *, SessionOptions *, int)                                                     \
  F(30, SessionGetInputCount, Status *, const Session *, size_t *)                                                 \
  F(31, SessionGetOutputCount, Status *, const Session *, size_t *)                                                \
  F(33, SessionGetInputTypeInfo, Status *, const Session *, size_t, TypeInfo **)                                   \
  F(34, SessionGetOutputTypeInfo, Status *, const Session *, size_t, TypeInfo **)                                  \
  F(36, SessionGetInputName, Status *, const Session *, size_t, Allocator *, char **)                              \
  F(37, SessionGetOutputName, Status *, const Session *, size_t, Allocator *, char **)                             \
  F(49, CreateTensorWithDataAsOrtValue, Status *, const MemoryInfo *, void *, size_t, const int64_t *, size_t, int, \
    Value **)                                                                                                      \
  F(55, CastTypeInfoToTensorInfo, Status *, const TypeInfo *, const TensorInfo **)                                 \
  F(60, GetTensorElementType, Status *, const TensorInfo *, int *)                                                 \
  F(61, GetDimensionsCount, Status *, const TensorInfo *, size_t *)                                                \
  F(62, GetDimensions, Status *, const TensorInfo *, int64_t *, size_t)                                            \
  F(63, GetSymbolicDimensions, Status *, const TensorInfo *, const char **, size_t)                                \
  F(68, CreateMemoryInfo, Status *, const char *name, int allocator, int device, int memory, MemoryInfo **)          \
  F(69, CreateCpuMemoryInfo, Status *, int allocator, int memory, MemoryInfo **)                                   \
  F(76, AllocatorFree, Status *, Allocator *, void *)                                                              \
  F(78, GetAllocatorWithDefaultOptions, Status *, Allocator **)                                                    \
  F(93, ReleaseStatus, void, Status *)                                                                             \
  F(94, ReleaseMemoryInfo, void, MemoryInfo *)                                                                     \
  F(95, ReleaseSession, void, Session *)                                                                           \
  F(96, ReleaseValue, void, Value *)                                                                               \
  F(98, ReleaseTypeInfo, void, TypeInfo *)                                                                         \
  F(100, ReleaseSessionOptions, void, SessionOptions *)                                                            \
  F(130, AddSessionConfigEntry, Status *, SessionOptions *, const char *, const char *)                            \
  F(133, RunWithBinding, Status *, Session *, const RunOptions *, const IoBinding *)                               \
  F(134, CreateIoBinding, Status *, Session *, IoBinding **)                                                       \
  F(135, ReleaseIoBinding, void, IoBinding *)                                                                      \
  F(136, BindInput, Status *, IoBinding *, const char *, const Value *)                                            \
  F(137, BindOutput, Status *, IoBinding *, const char *, const Value *)                                           \
  F(170, SessionOptionsAppendExecutionProvider_TensorRT_V2, Status *, SessionOptions *, const TensorRtOptions *)     \
  F(171, CreateTensorRTProviderOptions, Status *, TensorRtOptions **)                                              \
  F(174, ReleaseTensorRTProviderOptions, void, TensorRtOptions *)                                                  \
  F(203, SynchronizeBoundOutputs, Status *, IoBinding *)                                                             \
  F(204, SessionOptionsAppendExecutionProvider_CUDA_V2, Status *, SessionOptions *, const CudaOptions *)             \
  F(205, CreateCUDAProviderOptions, Status *, CudaOptions **)                                                      \
  F(206, UpdateCUDAProviderOptions, Status *, CudaOptions *, const char *const *, const char *const *, size_t)     \
  F(208, ReleaseCUDAProviderOptions, void, CudaOptions *)                                                          \
  F(216, SessionOptionsAppendExecutionProvider, Status *, SessionOptions *, const char *name, const char *const *, \
    const char *const *, size_t)                                                                                   \
  F(254, GetBuildInfoString, const char *)

// What came with plugins, in 1.22: to be read from a table of that version alone.
constexpr uint32_t kPluginApiVersion = 22;
#define RF_ORT_PLUGIN_FUNCTIONS(F)                                                                                 \
  F(301, RegisterExecutionProviderLibrary, Status *, Env *, const char *name, const char *path)                    \
  F(303, GetEpDevices, Status *, const Env *, const EpDevice *const **, size_t *)                                  \
  F(304, SessionOptionsAppendExecutionProvider_V2, Status *, SessionOptions *, Env *, const EpDevice *const *,     \
    size_t, const char *const *, const char *const *, size_t)                                                      \
  F(312, EpDevice_EpName, const char *, const EpDevice *)

#define RF_ORT_MEMBER(position, name, result, ...) result (*name)(__VA_ARGS__) = nullptr;
struct Api {
  RF_ORT_FUNCTIONS(RF_ORT_MEMBER)
};
struct PluginApi {
  RF_ORT_PLUGIN_FUNCTIONS(RF_ORT_MEMBER)
};
#undef RF_ORT_MEMBER

}  // namespace rf_internal::ort
