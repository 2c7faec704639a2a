// Exact parallel decoding of representation tokens: what a window is fed, and what is kept of what comes out; see
// runtime/backends/windows.py. Knows nothing of graphs, caches and noise.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace rf_internal {

// The representation tokens of one request. Position 0 is the start token, position k has token k - 1.
class TokenWindow {
 public:
  // `forced` is [N], -1 for a drawn token, or nullptr.
  TokenWindow(int64_t rows, int64_t columns, int64_t start_id, int64_t size, const int64_t *forced);

  int64_t size() const { return size_; }
  int64_t num_tokens() const { return int64_t(drawn_.size()); }
  int64_t num_known() const { return num_known_; }
  int64_t start() const { return start_; }                          // the first position of the next window
  bool ended() const { return num_cached_ > num_tokens(); }         // all tokens are known and in the cache
  bool draws() const { return num_known_ < num_tokens(); }          // the next window draws a token
  const std::vector<int64_t> &drawn() const { return drawn_; }      // as the graph drew them, also where forced
  const int64_t *rep_ids() const { return inputs_.data() + 1; }     // [N] the tokens to go on with

  void fill(int64_t *rep_ids, int64_t *grid_positions);  // [W] and [W, 2]
  // Takes what a pass drew, [W]; returns from which position to before which one it is right. Where all had ended
  // before, nothing is new.
  std::pair<int64_t, int64_t> settle(const int64_t *drawn);

 private:
  int64_t columns_, size_, num_known_ = 0, num_cached_ = 0, start_ = 0, num_guessed_ = 0;
  std::vector<int64_t> drawn_, inputs_, forced_;
};

}  // namespace rf_internal
