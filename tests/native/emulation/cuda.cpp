// libcuda.so.1 of a machine with an emulated GPU: memory of the host in pages that nobody may touch but copies and
// kernels, so that a program that mixes up the two memories crashes. What is put on a stream is done when somebody waits
// for it, and not before. New memory is not finite. Of the driver's API what rf_runtime and the other emulations call.
#include "cuda.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace {

using Address = unsigned long long;
enum { kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNoDevice = 100, kInvalidContext = 201 };
constexpr size_t kPage = 4096;

struct Stream {
  std::deque<std::function<void()>> work;
};

std::recursive_mutex mutex;
std::map<uintptr_t, size_t> blocks;
std::vector<std::pair<char, size_t>> copies;
int num_open = 0, context = 0;
thread_local std::vector<void *> current;

size_t pages(size_t num_bytes) { return (num_bytes + kPage - 1) / kPage * kPage; }

void protect(int how) {
  for (auto &[start, size] : blocks) mprotect(reinterpret_cast<void *>(start), pages(size), how);
}

[[noreturn]] void crash(const char *why) {
  std::fprintf(stderr, "emulated GPU: %s\n", why);
  std::abort();
}

void note(char kind, size_t num_bytes) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  copies.emplace_back(kind, num_bytes);
}

template <class Work>
int put(void *stream, Work work) {
  if (current.empty() || current.back() != &context || !stream) return kInvalidContext;
  std::lock_guard<std::recursive_mutex> lock(mutex);
  static_cast<Stream *>(stream)->work.push_back(work);
  return kSuccess;
}

void *device(Address address, size_t num_bytes) {
  auto *memory = reinterpret_cast<void *>(address);
  if (!emulated_is_device(memory, num_bytes)) crash("a copy or memset leaves the memory of the device");
  return memory;
}

const void *of_host(const void *memory) {
  if (emulated_is_device(memory, 1)) crash("a copy has an address of the device for one of the host");
  return memory;
}

struct End {
  size_t x, y, z, level;
  int type;
  const void *host;
  Address device;
  void *array, *reserved;
  size_t pitch, height;
};
struct BlockCopy {
  End source, target;
  size_t width, height, depth;
};

}  // namespace

extern "C" {

void emulated_open(void) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  if (!num_open++) protect(PROT_READ | PROT_WRITE);
}

void emulated_close(void) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  if (!--num_open) protect(PROT_NONE);
}

int emulated_is_device(const void *memory, size_t num_bytes) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  auto start = reinterpret_cast<uintptr_t>(memory);
  auto next = blocks.upper_bound(start);
  if (next == blocks.begin()) return 0;
  auto [first, size] = *std::prev(next);
  return start + num_bytes <= first + size;
}

void emulated_put(void *stream, void (*work)(void *), void *argument) {
  if (put(stream, [=] { work(argument); })) crash("a kernel is launched without the context or on no stream");
}

void emulated_count(char kind, size_t at_least, size_t *count, size_t *num_bytes) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  *count = *num_bytes = 0;
  for (auto &[each, size] : copies)
    if (each == kind && size >= at_least) ++*count, *num_bytes += size;
}

void emulated_forget(void) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  copies.clear();
}

size_t emulated_live(void) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  size_t all = 0;
  for (auto &block : blocks) all += block.second;
  return all;
}

int cuInit(unsigned) { return kSuccess; }
int cuDeviceGetCount(int *count) {
  *count = std::getenv("EMULATED_GPUS") ? std::atoi(std::getenv("EMULATED_GPUS")) : 1;
  return kSuccess;
}
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, kSuccess; }
int cuDeviceGetAttribute(int *value, int attribute, int) {  // 8.7, an Orin
  if (attribute != 75 && attribute != 76) return kInvalidValue;
  return *value = attribute == 75 ? 8 : 7, kSuccess;
}
int cuDevicePrimaryCtxRetain(void **retained, int) { return *retained = &context, kSuccess; }
int cuCtxPushCurrent_v2(void *pushed) { return current.push_back(pushed), kSuccess; }
int cuCtxPopCurrent_v2(void **popped) {
  if (current.empty()) return kInvalidContext;
  *popped = current.back();
  current.pop_back();
  return kSuccess;
}
int cuStreamCreate(void **stream, unsigned flags) {
  if (flags != 1) return kInvalidValue;
  return *stream = new Stream, kSuccess;
}

int cuStreamSynchronize(void *stream) {
  if (current.empty() || current.back() != &context) return kInvalidContext;
  std::lock_guard<std::recursive_mutex> lock(mutex);
  auto &work = static_cast<Stream *>(stream)->work;
  emulated_open();
  for (; !work.empty(); work.pop_front()) work.front()();
  emulated_close();
  return kSuccess;
}

int cuMemAlloc_v2(Address *address, size_t num_bytes) {
  if (current.empty() || current.back() != &context) return kInvalidContext;
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const char *most = std::getenv("EMULATED_BYTES");
  if (num_bytes + emulated_live() > (most ? std::strtoull(most, nullptr, 10) : size_t(1) << 32)) return kOutOfMemory;
  void *memory = mmap(nullptr, pages(num_bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return kOutOfMemory;
  std::memset(memory, 0xFF, pages(num_bytes));
  if (!num_open) mprotect(memory, pages(num_bytes), PROT_NONE);
  blocks[reinterpret_cast<uintptr_t>(memory)] = num_bytes;
  *address = reinterpret_cast<Address>(memory);
  return kSuccess;
}

int cuMemFree_v2(Address address) {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  auto found = blocks.find(uintptr_t(address));
  if (found == blocks.end()) crash("memory is freed that is none");
  munmap(reinterpret_cast<void *>(address), pages(found->second));
  blocks.erase(found);
  return kSuccess;
}

int cuMemsetD8Async(Address target, unsigned char value, size_t num_bytes, void *stream) {
  return put(stream, [=] { std::memset(device(target, num_bytes), value, num_bytes); });
}

int cuMemsetD2D8Async(Address target, size_t pitch, unsigned char value, size_t width, size_t height, void *stream) {
  return put(stream, [=] {
    for (size_t row = 0; row < height; ++row) std::memset(device(target + row * pitch, width), value, width);
  });
}

int cuMemcpyHtoDAsync_v2(Address target, const void *source, size_t num_bytes, void *stream) {
  of_host(source);
  note('u', num_bytes);  // it is read when its turn comes
  return put(stream, [=] { std::memcpy(device(target, num_bytes), source, num_bytes); });
}

int cuMemcpyDtoHAsync_v2(void *target, Address source, size_t num_bytes, void *stream) {
  of_host(target);
  note('d', num_bytes);
  return put(stream, [=] { std::memcpy(target, device(source, num_bytes), num_bytes); });
}

int cuMemcpyDtoDAsync_v2(Address target, Address source, size_t num_bytes, void *stream) {
  note('c', num_bytes);
  return put(stream, [=] { std::memcpy(device(target, num_bytes), device(source, num_bytes), num_bytes); });
}

int cuMemcpy3DAsync_v2(const BlockCopy *given, void *stream) {
  BlockCopy copy = *given;
  const End &from = copy.source, &to = copy.target;
  bool is_whole = !(from.x || from.y || from.z || to.x || to.y || to.z);
  if (!is_whole || from.type != 2 || to.type != 2 || from.pitch < copy.width || to.pitch < copy.width ||
      from.height < copy.height || to.height < copy.height)
    return kInvalidValue;
  note('c', copy.width * copy.height * copy.depth);
  return put(stream, [copy] {
    auto row = [&](const End &end, size_t slice, size_t line) {
      return device(end.device + (slice * end.height + line) * end.pitch, copy.width);
    };
    for (size_t slice = 0; slice < copy.depth; ++slice)
      for (size_t line = 0; line < copy.height; ++line)
        std::memcpy(row(copy.target, slice, line), row(copy.source, slice, line), copy.width);
  });
}

int cuGetErrorName(int code, const char **name) {
  *name = code == kInvalidContext ? "CUDA_ERROR_INVALID_CONTEXT" : "CUDA_ERROR_INVALID_VALUE";
  return kSuccess;
}
}
