// UTF-8, also of halves of surrogate pairs, which JSON can spell and UTF-8 cannot.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace rf_internal {

inline void append_utf8(std::string &out, uint32_t code) {
  if (code < 0x80) {
    out += char(code);
  } else if (code < 0x800) {
    out += char(0xC0 | code >> 6), out += char(0x80 | (code & 63));
  } else if (code < 0x10000) {
    out += char(0xE0 | code >> 12), out += char(0x80 | (code >> 6 & 63)), out += char(0x80 | (code & 63));
  } else {
    out += char(0xF0 | code >> 18), out += char(0x80 | (code >> 12 & 63)), out += char(0x80 | (code >> 6 & 63));
    out += char(0x80 | (code & 63));
  }
}

// The character at `at`, which goes behind it; 0xFFFFFFFF where these bytes are none. Surrogates are taken.
inline uint32_t next_utf8(const std::string &text, size_t &at) {
  constexpr uint32_t bad = 0xFFFFFFFF;
  auto byte = [&](size_t i) { return i < text.size() ? uint8_t(text[i]) : 0u; };
  uint32_t first = byte(at);
  int more = first < 0x80 ? 0 : first < 0xC2 ? -1 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : first < 0xF5 ? 3 : -1;
  if (more < 0) return ++at, bad;
  uint32_t code = more == 0 ? first : first & (0x3F >> more);
  for (int i = 1; i <= more; ++i) {
    if ((byte(at + size_t(i)) & 0xC0) != 0x80) return ++at, bad;
    code = code << 6 | (byte(at + size_t(i)) & 63);
  }
  constexpr uint32_t least[] = {0, 0x80, 0x800, 0x10000};
  if (code < least[more] || code > 0x10FFFF) return ++at, bad;
  at += size_t(more) + 1;
  return code;
}

inline bool is_surrogate(uint32_t code) { return code >= 0xD800 && code < 0xE000; }

// Whether a text is UTF-8, without surrogates.
inline bool is_utf8(const std::string &text) {
  for (size_t at = 0; at < text.size();) {
    uint32_t code = next_utf8(text, at);
    if (code == 0xFFFFFFFF || is_surrogate(code)) return false;
  }
  return true;
}

inline std::vector<uint32_t> code_points(const std::string &text) {
  std::vector<uint32_t> codes;
  for (size_t at = 0; at < text.size();) codes.push_back(next_utf8(text, at));
  return codes;
}

}  // namespace rf_internal
