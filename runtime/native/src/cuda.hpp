// The first GPU through NVIDIA's driver, which is opened by name at run time: no header and no library of CUDA is needed.
// Knows nothing of graphs; see runtime/backends/cuda/driver.py and device.py.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "memory.hpp"

namespace rf_internal {

struct CudaDriver;

// One stream takes everything, of all threads.
class Cuda : public Device {
 public:
  // The GPU of the process, opened by the first call and never closed; null and `why` where there is none.
  static const Cuda *find(std::string &why);

  // What engines are built for, such as "x86_64 sm_87".
  const std::string &target() const { return target_; }
  void *stream() const { return stream_; }
  bool is_here() const;  // not in a child of the process that opened it, where it cannot even be given back

  // Makes the GPU current for this thread, and what was current again afterwards.
  class Current {
   public:
    explicit Current(const Cuda &cuda);
    ~Current();
    Current(const Current &) = delete;
    Current &operator=(const Current &) = delete;

   private:
    const Cuda &cuda_;
  };

  size_t alignment() const override { return 256; }  // as TensorRT wants it
  uint8_t *allocate(size_t num_bytes) const override;
  void release(uint8_t *memory) const noexcept override;
  void zero_rows(uint8_t *target, size_t pitch, size_t width, size_t height) const override;
  void copy(const RowCopy &rows) const override;
  void upload(uint8_t *target, const void *source, size_t num_bytes) const override;
  void download(void *target, const uint8_t *source, size_t num_bytes) const override;
  void wait() const override;

 private:
  explicit Cuda(const CudaDriver &driver);
  void check(int code, const char *what) const;
  const CudaDriver &driver_;
  int process_;
  void *context_ = nullptr, *stream_ = nullptr;
  std::string target_;
  mutable std::mutex mutex_;
  mutable std::vector<std::vector<uint8_t>> sent_;  // until the copies are made: some drivers read them no earlier
};

}  // namespace rf_internal
