// SHA-256 (FIPS 180-4), by the processor's own instructions where it has them. Knows nothing of files.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace rf_internal {

class Sha256 {
 public:
  // Takes whole blocks of 64 bytes into the eight words.
  using Blocks = void (*)(uint32_t *words, const uint8_t *data, size_t count);
  static void portable(uint32_t *words, const uint8_t *data, size_t count);
  static Blocks fastest();  // that this processor has

  explicit Sha256(Blocks blocks = fastest()) : blocks_(blocks) {}
  void update(const void *data, size_t size);
  std::string hex();  // ends it

 private:
  Blocks blocks_;
  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> pending_{};
  uint64_t size_ = 0;
};

std::string sha256(const std::string &text);

}  // namespace rf_internal
