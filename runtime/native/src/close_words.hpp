// The words that are most like another one, as Python's difflib finds them. Knows nothing of vocabularies.
#pragma once

#include <string>
#include <vector>

namespace rf_internal {

// At most two, the nearest first, of those that agree in 65% at least.
std::vector<std::string> close_words(const std::string &word, const std::vector<std::string> &vocabulary);

}  // namespace rf_internal
