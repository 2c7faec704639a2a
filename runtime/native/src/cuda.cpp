#include "cuda.hpp"

#include <dlfcn.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <utility>

#include "error.hpp"

namespace rf_internal {

// Handles are pointers, a device is a number, and an address is as wide as a pointer (cuda.h).
using Address = unsigned long long;

struct BlockCopy {  // CUDA_MEMCPY3D of cuda.h
  struct End {
    size_t x, y, z, level;
    int type;
    const void *host;
    Address device;
    void *array, *reserved;
    size_t pitch, height;
  };
  End source, target;
  size_t width, height, depth;
};

#define RF_CUDA_FUNCTIONS(F)                                              \
  F(cuInit, unsigned)                                                     \
  F(cuDeviceGetCount, int *)                                              \
  F(cuDeviceGet, int *, int)                                              \
  F(cuDeviceGetAttribute, int *, int attribute, int device)               \
  F(cuDevicePrimaryCtxRetain, void **, int)                               \
  F(cuCtxPushCurrent_v2, void *)                                          \
  F(cuCtxPopCurrent_v2, void **)                                          \
  F(cuStreamCreate, void **, unsigned flags)                              \
  F(cuStreamSynchronize, void *)                                          \
  F(cuMemAlloc_v2, Address *, size_t)                                     \
  F(cuMemFree_v2, Address)                                                \
  F(cuMemsetD8Async, Address, unsigned char, size_t, void *)              \
  F(cuMemsetD2D8Async, Address, size_t, unsigned char, size_t, size_t, void *) \
  F(cuMemcpyHtoDAsync_v2, Address, const void *, size_t, void *)          \
  F(cuMemcpyDtoHAsync_v2, void *, Address, size_t, void *)                \
  F(cuMemcpyDtoDAsync_v2, Address, Address, size_t, void *)               \
  F(cuMemcpy3DAsync_v2, const BlockCopy *, void *)                        \
  F(cuGetErrorName, int, const char **)

#define RF_CUDA_MEMBER(name, ...) int (*name)(__VA_ARGS__) = nullptr;
struct CudaDriver {
  RF_CUDA_FUNCTIONS(RF_CUDA_MEMBER)
};
#undef RF_CUDA_MEMBER

namespace {

constexpr const char *kLibrary = "libcuda.so.1";
constexpr int kOutOfMemory = 2, kNoDevice = 100, kMajor = 75, kMinor = 76, kDeviceMemory = 2;
constexpr unsigned kNonBlocking = 1;  // what others put on the default stream is none of ours

Address address(const void *pointer) { return reinterpret_cast<Address>(pointer); }

std::string reason(int code) {
  switch (code) {
    case kNoDevice: return "the driver finds no GPU (CUDA_ERROR_NO_DEVICE); in a container, start it with --gpus all";
    case 803:
      return "the driver and the CUDA compatibility library do not fit together (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)";
    case 804: return "this driver cannot run this CUDA (CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE)";
    default: return "cuInit failed with error " + std::to_string(code);
  }
}

// The driver; null and `why` where it is missing, or finds no GPU.
const CudaDriver *open_driver(std::string &why) {
  void *library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (!library) return why = std::string(kLibrary) + " is not there: no NVIDIA driver is installed", nullptr;
  static CudaDriver driver;
#define RF_CUDA_TAKE(name, ...)                                                    \
  driver.name = reinterpret_cast<decltype(driver.name)>(dlsym(library, #name)); \
  if (!driver.name) return why = std::string(kLibrary) + " has no " #name ": the NVIDIA driver is too old", nullptr;
  RF_CUDA_FUNCTIONS(RF_CUDA_TAKE)
#undef RF_CUDA_TAKE
  int count = 0;
  if (int code = driver.cuInit(0)) return why = reason(code), nullptr;
  if (driver.cuDeviceGetCount(&count) || count < 1) return why = reason(kNoDevice), nullptr;
  return &driver;
}

}  // namespace

const Cuda *Cuda::find(std::string &why) {
  static std::mutex mutex;
  static const Cuda *found = nullptr;
  std::lock_guard<std::mutex> lock(mutex);
  if (found) return found;
  auto *driver = open_driver(why);
  return driver ? found = new Cuda(*driver) : nullptr;
}

Cuda::Cuda(const CudaDriver &driver) : driver_(driver), process_(getpid()) {
  int device = 0, major = 0, minor = 0;
  check(driver.cuDeviceGet(&device, 0), "cuDeviceGet");
  check(driver.cuDeviceGetAttribute(&major, kMajor, device), "cuDeviceGetAttribute");
  check(driver.cuDeviceGetAttribute(&minor, kMinor, device), "cuDeviceGetAttribute");
  // The context that the CUDA runtime, and with it every library that runs graphs, uses.
  check(driver.cuDevicePrimaryCtxRetain(&context_, device), "cuDevicePrimaryCtxRetain");
  Current current(*this);
  check(driver.cuStreamCreate(&stream_, kNonBlocking), "cuStreamCreate");
  utsname machine;
  uname(&machine);
  target_ = std::string(machine.machine) + " sm_" + std::to_string(major) + std::to_string(minor);
}

bool Cuda::is_here() const { return process_ == getpid(); }

Cuda::Current::Current(const Cuda &cuda) : cuda_(cuda) {
  cuda.check(cuda.driver_.cuCtxPushCurrent_v2(cuda.context_), "cuCtxPushCurrent");
}

Cuda::Current::~Current() {
  void *popped;
  cuda_.driver_.cuCtxPopCurrent_v2(&popped);
}

void Cuda::check(int code, const char *what) const {
  if (!code) return;
  const char *name = nullptr;
  if (driver_.cuGetErrorName(code, &name) || !name) name = "an unknown error";
  throw Error(std::string("The GPU failed: ") + what + " says " + name + ". Start the program again.", RF_FAULT);
}

uint8_t *Cuda::allocate(size_t num_bytes) const {
  Current current(*this);
  Address memory = 0;
  int code = driver_.cuMemAlloc_v2(&memory, num_bytes ? num_bytes : 1);
  if (code == kOutOfMemory)
    throw Error("The GPU has no " + std::to_string(num_bytes >> 20) + " MiB of memory left. Draw fewer pictures at once or "
                "smaller ones, or end other programs that use the GPU.",
                RF_NO_MEMORY);
  check(code, "cuMemAlloc");
  if (num_bytes) check(driver_.cuMemsetD8Async(memory, 0, num_bytes, stream_), "cuMemsetD8Async");
  return reinterpret_cast<uint8_t *>(memory);
}

void Cuda::release(uint8_t *memory) const noexcept {
  if (!is_here()) return;
  try {
    wait();  // what still runs may use it
    Current current(*this);
    driver_.cuMemFree_v2(address(memory));
  } catch (const Error &) {  // of a driver that is gone already, at the end of the process
  }
}

void Cuda::zero_rows(uint8_t *target, size_t pitch, size_t width, size_t height) const {
  Current current(*this);
  check(driver_.cuMemsetD2D8Async(address(target), pitch, 0, width, height, stream_), "cuMemsetD2D8Async");
}

void Cuda::copy(const RowCopy &rows) const {
  Current current(*this);
  if (rows.height == 1 && rows.depth == 1)
    return check(driver_.cuMemcpyDtoDAsync_v2(address(rows.target), address(rows.source), rows.width, stream_),
                 "cuMemcpyDtoDAsync");
  auto end = [](const uint8_t *memory, size_t pitch, size_t slice) {
    return BlockCopy::End{0, 0, 0, 0, kDeviceMemory, nullptr, address(memory), nullptr, nullptr, pitch, slice / pitch};
  };
  BlockCopy copy{end(rows.source, rows.source_pitch, rows.source_slice), end(rows.target, rows.target_pitch, rows.target_slice),
                 rows.width, rows.height, rows.depth};
  check(driver_.cuMemcpy3DAsync_v2(&copy, stream_), "cuMemcpy3DAsync");
}

void Cuda::upload(uint8_t *target, const void *source, size_t num_bytes) const {
  if (!num_bytes) return;
  Current current(*this);
  auto *first = static_cast<const uint8_t *>(source);
  std::vector<uint8_t> kept(first, first + num_bytes);
  std::lock_guard<std::mutex> lock(mutex_);
  sent_.push_back(std::move(kept));
  check(driver_.cuMemcpyHtoDAsync_v2(address(target), sent_.back().data(), num_bytes, stream_), "cuMemcpyHtoDAsync");
}

void Cuda::download(void *target, const uint8_t *source, size_t num_bytes) const {
  if (!num_bytes) return;
  Current current(*this);
  check(driver_.cuMemcpyDtoHAsync_v2(target, address(source), num_bytes, stream_), "cuMemcpyDtoHAsync");
}

void Cuda::wait() const {
  std::vector<std::vector<uint8_t>> sent;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    sent.swap(sent_);
  }
  Current current(*this);
  check(driver_.cuStreamSynchronize(stream_), "cuStreamSynchronize");
}

}  // namespace rf_internal
