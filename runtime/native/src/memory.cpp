#include "memory.hpp"

#include <cstdlib>
#include <cstring>
#include <new>

namespace rf_internal {
namespace {

class Host : public Device {
 public:
  bool is_host() const override { return true; }
  size_t alignment() const override { return 1; }

  uint8_t *allocate(size_t num_bytes) const override {
    auto *memory = static_cast<uint8_t *>(std::calloc(num_bytes ? num_bytes : 1, 1));
    if (!memory) throw std::bad_alloc();
    return memory;
  }

  void release(uint8_t *memory) const noexcept override { std::free(memory); }

  void zero_rows(uint8_t *target, size_t pitch, size_t width, size_t height) const override {
    for (size_t row = 0; row < height; ++row) std::memset(target + row * pitch, 0, width);
  }

  void copy(const RowCopy &rows) const override {
    for (size_t slice = 0; slice < rows.depth; ++slice)
      for (size_t row = 0; row < rows.height; ++row)
        std::memcpy(rows.target + slice * rows.target_slice + row * rows.target_pitch,
                    rows.source + slice * rows.source_slice + row * rows.source_pitch, rows.width);
  }

  void upload(uint8_t *target, const void *source, size_t num_bytes) const override { std::memcpy(target, source, num_bytes); }
  void download(void *target, const uint8_t *source, size_t num_bytes) const override { std::memcpy(target, source, num_bytes); }
  void wait() const override {}
};

}  // namespace

const Device &host() {
  static const Host memory;
  return memory;
}

Mirror::Mirror(const Device &device, void *data, size_t num_bytes)
    : device_(device), data_(data), num_bytes_(num_bytes), memory_(device.is_host() ? Memory() : Memory(device, num_bytes)),
      place_(device.is_host() ? static_cast<uint8_t *>(data) : memory_.data()) {}

void Mirror::upload() const {
  if (!device_.is_host()) device_.upload(place_, data_, num_bytes_);
}

void Mirror::download() const {
  if (device_.is_host()) return;
  device_.download(data_, place_, num_bytes_);
  device_.wait();
}

}  // namespace rf_internal
