#include "close_words.hpp"

#include <algorithm>
#include <cstdint>

#include "utf8.hpp"

namespace rf_internal {
namespace {

using Codes = std::vector<uint32_t>;

// Characters in matching blocks: the longest one first, then those on both sides of it.
size_t num_matching(const Codes &a, size_t a0, size_t a1, const Codes &b, size_t b0, size_t b1) {
  size_t best = 0, at_a = a0, at_b = b0;
  for (size_t i = a0; i < a1; ++i)
    for (size_t j = b0; j < b1; ++j) {
      size_t size = 0;
      while (i + size < a1 && j + size < b1 && a[i + size] == b[j + size]) ++size;
      if (size > best) best = size, at_a = i, at_b = j;
    }
  if (!best) return 0;
  return best + num_matching(a, a0, at_a, b, b0, at_b) + num_matching(a, at_a + best, a1, b, at_b + best, b1);
}

}  // namespace

std::vector<std::string> close_words(const std::string &word, const std::vector<std::string> &vocabulary) {
  constexpr size_t most = 2, most_compared = 20000;
  Codes wanted = code_points(word);
  std::vector<std::pair<double, std::string>> found;
  size_t num_compared = 0;
  for (auto &each : vocabulary) {
    Codes codes = code_points(each);
    size_t difference = codes.size() > wanted.size() ? codes.size() - wanted.size() : wanted.size() - codes.size();
    if (codes.size() < 2 || difference > 2 + wanted.size() / 4) continue;
    if (num_compared++ == most_compared) break;
    double size = double(codes.size() + wanted.size());
    double ratio = 2.0 * double(num_matching(codes, 0, codes.size(), wanted, 0, wanted.size())) / size;
    if (ratio >= 0.65) found.emplace_back(ratio, each);
  }
  std::sort(found.rbegin(), found.rend());
  std::vector<std::string> words;
  for (size_t i = 0; i < std::min(most, found.size()); ++i) words.push_back(found[i].second);
  return words;
}

}  // namespace rf_internal
