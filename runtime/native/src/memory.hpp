// Where the tensors of graphs lie: the memory of the host or of a device, and copies in it. Knows nothing of graphs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace rf_internal {

// `depth` slices of `height` rows of `width` bytes; from row to row and from slice to slice it is these bytes.
struct RowCopy {
  const uint8_t *source;
  size_t source_pitch, source_slice;
  uint8_t *target;
  size_t target_pitch, target_slice;
  size_t width, height, depth;
};

// Takes work in the order in which it comes, from any thread; nothing but `wait` is known to have been done when it
// returns. What is uploaded may change at once; what is downloaded is there after `wait`.
class Device {
 public:
  virtual ~Device() = default;
  virtual bool is_host() const { return false; }
  virtual size_t alignment() const = 0;  // of each tensor
  // Zero at first. Raises Error (missing) or std::bad_alloc where there is no more.
  virtual uint8_t *allocate(size_t num_bytes) const = 0;
  virtual void release(uint8_t *memory) const noexcept = 0;
  virtual void zero_rows(uint8_t *target, size_t pitch, size_t width, size_t height) const = 0;
  virtual void copy(const RowCopy &rows) const = 0;  // on the device
  virtual void upload(uint8_t *target, const void *source, size_t num_bytes) const = 0;
  virtual void download(void *target, const uint8_t *source, size_t num_bytes) const = 0;
  virtual void wait() const = 0;
};

const Device &host();

// Memory that goes with the object. The device has to outlive it.
class Memory {
 public:
  Memory() = default;
  Memory(const Device &device, size_t num_bytes)
      : device_(&device), data_(device.allocate(num_bytes)), num_bytes_(num_bytes) {}
  ~Memory() {
    if (data_) device_->release(data_);
  }
  Memory(Memory &&other) noexcept { swap(other); }
  Memory &operator=(Memory &&other) noexcept {
    swap(other);
    return *this;
  }

  uint8_t *data() const { return data_; }
  size_t num_bytes() const { return num_bytes_; }

 private:
  void swap(Memory &other) noexcept {
    std::swap(device_, other.device_), std::swap(data_, other.data_), std::swap(num_bytes_, other.num_bytes_);
  }
  const Device *device_ = nullptr;
  uint8_t *data_ = nullptr;
  size_t num_bytes_ = 0;
};

// Numbers of the host, and their place on a device, which on the host is where they are.
class Mirror {
 public:
  Mirror(const Device &device, void *data, size_t num_bytes);

  uint8_t *place() const { return place_; }
  void upload() const;    // to the device, where there is one
  void download() const;  // from it, and waits

 private:
  const Device &device_;
  void *data_;
  size_t num_bytes_;
  Memory memory_;
  uint8_t *place_;
};

}  // namespace rf_internal
