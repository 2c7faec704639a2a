#include "windows.hpp"

#include <algorithm>

namespace rf_internal {

TokenWindow::TokenWindow(int64_t rows, int64_t columns, int64_t start_id, int64_t size, const int64_t *forced)
    : columns_(columns), size_(std::min(size, rows * columns + 1)), drawn_(size_t(rows * columns)),
      inputs_(drawn_.size() + 1), forced_(drawn_.size(), -1) {
  inputs_[0] = start_id;
  if (forced) std::copy_n(forced, forced_.size(), forced_.begin());
  for (size_t i = 0; i < forced_.size(); ++i)
    if (forced_[i] >= 0) inputs_[i + 1] = forced_[i];
}

void TokenWindow::fill(int64_t *rep_ids, int64_t *grid_positions) {
  for (int64_t token = num_guessed_; token < std::min(start_ + size_ - 1, num_tokens()); ++token)
    if (token && forced_[size_t(token)] < 0) inputs_[size_t(token + 1)] = inputs_[size_t(token)];  // the one before
  for (int64_t place = 0; place < size_; ++place) {
    int64_t cell = std::max<int64_t>(start_ + place - 1, 0);  // the start token has the first cell
    rep_ids[place] = inputs_[size_t(start_ + place)];
    grid_positions[2 * place] = cell / columns_, grid_positions[2 * place + 1] = cell % columns_;
  }
}

std::pair<int64_t, int64_t> TokenWindow::settle(const int64_t *drawn) {
  int64_t first = start_, before = num_cached_, end = first + size_, known = before, limit = std::min(end, num_tokens());
  while (known < end) {
    size_t token = size_t(known++);  // the token at this position was right, so what was drawn there is
    if (token == drawn_.size()) break;  // nothing is, at the last one
    int64_t guess = inputs_[token + 1];
    drawn_[token] = drawn[int64_t(token) - first];
    if (forced_[token] < 0) inputs_[token + 1] = drawn_[token];
    if (guess != inputs_[token + 1]) break;
  }
  num_cached_ = known, num_known_ = std::min(known, num_tokens());
  for (int64_t token = known; token < limit; ++token)  // drawn after a wrong token: the best guess there is
    if (forced_[size_t(token)] < 0) inputs_[size_t(token + 1)] = drawn[token - first];
  num_guessed_ = std::max(num_guessed_, limit);
  start_ = std::min(known, num_tokens() + 1 - size_);
  return {before, known};
}

}  // namespace rf_internal
