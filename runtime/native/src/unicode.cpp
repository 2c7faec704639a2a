#include "unicode.hpp"

#include <algorithm>
#include <iterator>
#include <map>
#include <vector>

#include "utf8.hpp"

namespace rf_internal {
namespace {

struct Range {
  uint32_t first, last;
};
struct Pair {
  uint32_t code, value;
};
struct Triple {
  uint32_t code, first, second;
};

#include "unicode_tables.inc"

template <size_t N>
bool is_in(const Range (&table)[N], uint32_t code) {
  auto found = std::upper_bound(table, table + N, code, [](uint32_t c, const Range &range) { return c < range.first; });
  return found != table && code <= std::prev(found)->last;
}

template <class T, size_t N>
const T *entry_of(const T (&table)[N], uint32_t code) {
  auto found = std::lower_bound(table, table + N, code, [](const T &entry, uint32_t c) { return entry.code < c; });
  return found != table + N && found->code == code ? found : nullptr;
}

uint32_t combining_class(uint32_t code) {
  auto found = entry_of(kCombining, code);
  return found ? found->value : 0;
}

void decompose(uint32_t code, std::vector<uint32_t> &out) {
  constexpr uint32_t syllables = 0xAC00;
  if (code >= syllables && code < syllables + 11172) {  // Hangul
    uint32_t index = code - syllables;
    out.push_back(0x1100 + index / 588), out.push_back(0x1161 + index % 588 / 28);
    if (index % 28) out.push_back(0x11A7 + index % 28);
    return;
  }
  auto found = entry_of(kComposed, code);
  if (!found) found = entry_of(kDecomposed, code);
  if (!found) return out.push_back(code);
  decompose(found->first, out);
  if (found->second) decompose(found->second, out);
}

uint32_t composed(uint32_t first, uint32_t second) {  // 0 where the two do not make one
  if (first >= 0x1100 && first < 0x1113 && second >= 0x1161 && second < 0x1176)
    return 0xAC00 + ((first - 0x1100) * 21 + (second - 0x1161)) * 28;
  if (first >= 0xAC00 && first < 0xAC00 + 11172 && (first - 0xAC00) % 28 == 0 && second > 0x11A7 && second < 0x11C3)
    return first + (second - 0x11A7);
  static const auto pairs = [] {
    std::map<std::pair<uint32_t, uint32_t>, uint32_t> made;
    for (auto &entry : kComposed) made[{entry.first, entry.second}] = entry.code;
    return made;
  }();
  auto found = pairs.find({first, second});
  return found == pairs.end() ? 0 : found->second;
}

}  // namespace

bool is_printable(uint32_t code) { return is_in(kPrintable, code); }
bool is_letter(uint32_t code) { return is_in(kLetters, code); }
bool is_number(uint32_t code) { return is_in(kNumbers, code); }
bool is_space(uint32_t code) {
  return (code >= 9 && code <= 13) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
         code == 0x3000;
}
bool is_word(uint32_t code) {  // letters, marks, digits, connectors, joiners, and what else is alphabetic
  if (code < 128) return code == '_' || (code >= '0' && code <= '9') || ((code | 32) >= 'a' && (code | 32) <= 'z');
  return is_in(kLetters, code) || is_in(kMarks, code) || is_in(kDigits, code) || is_in(kConnectors, code) ||
         (code >= 0x16EE && code <= 0x16F0) || (code >= 0x2160 && code <= 0x2188) || (code >= 0x24B6 && code <= 0x24E9) ||
         (code >= 0x3007 && code <= 0x3007) || (code >= 0x3021 && code <= 0x3029) || (code >= 0x3038 && code <= 0x303A) ||
         (code >= 0xA6E6 && code <= 0xA6EF) || (code >= 0x10140 && code <= 0x10174) || code == 0x10341 ||
         code == 0x1034A || (code >= 0x103D1 && code <= 0x103D5) || (code >= 0x12400 && code <= 0x1246E) ||
         (code >= 0x1F130 && code <= 0x1F149) || (code >= 0x1F150 && code <= 0x1F169) ||
         (code >= 0x1F170 && code <= 0x1F189) || code == 0x200C || code == 0x200D;
}

std::string lowercase(const std::string &text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    uint32_t code = next_utf8(text, at);
    if (code == 0x130) {
      out += "i\xCC\x87";
      continue;
    }
    auto found = entry_of(kLower, code);
    append_utf8(out, found ? found->value : code);
  }
  return out;
}

std::string nfc(const std::string &text) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return uint8_t(c) < 128; })) return text;
  std::vector<uint32_t> codes;
  for (uint32_t code : code_points(text)) decompose(code, codes);
  for (size_t at = 0; at < codes.size();) {  // marks in the order of their classes
    size_t end = at;
    while (end < codes.size() && combining_class(codes[end])) ++end;
    std::stable_sort(codes.begin() + long(at), codes.begin() + long(end),
                     [](uint32_t a, uint32_t b) { return combining_class(a) < combining_class(b); });
    at = end == at ? at + 1 : end;
  }
  std::vector<uint32_t> out;
  size_t starter = SIZE_MAX;
  uint32_t last = 0;
  for (uint32_t code : codes) {
    uint32_t rank = combining_class(code);
    bool is_blocked = starter + 1 < out.size() && last >= rank;
    if (uint32_t one = starter != SIZE_MAX && !is_blocked ? composed(out[starter], code) : 0) {
      out[starter] = one;
      continue;
    }
    if (!rank) starter = out.size();
    last = rank;
    out.push_back(code);
  }
  std::string result;
  for (uint32_t code : out) append_utf8(result, code);
  return result;
}

}  // namespace rf_internal
