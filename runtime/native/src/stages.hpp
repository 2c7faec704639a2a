// The stages of a drawing, and what is read in a conversation: token ids and noise in, token ids and pixels out; see
// runtime/backends/host/{cache,stages,text}.py. Knows nothing of texts, seeds and files.
//
// Legend: R requests, W tokens of a window, K representation vocabulary, L layers, H key/value heads, D head size.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "plans.hpp"
#include "session.hpp"
#include "signature.hpp"
#include "windows.hpp"

namespace rf_internal {

struct Graphs {  // the loaded graphs of a model, and whose they are
  ModelSpec model;
  Variant variant;
  std::map<std::string, std::unique_ptr<Session>> sessions;

  const Session &at(const char *name) const { return *sessions.at(name); }
  const Device &device() const { return at("rep_decoder").device(); }
  size_t kv_bytes() const { return variant.is_half() ? 2 : 4; }
  std::optional<int64_t> cache_slots() const { return at("rep_decoder").signature().cache_slots(); }
  int64_t padded_prompt(int64_t num_tokens) const { return at("text_decoder").padded("input_ids", 1, kPromptStep, num_tokens); }

  static constexpr int64_t kPromptStep = 32;
};

// Keys and values: [2 L] tensors [rows, H, tokens, D] in one block, zero at first, each on a boundary of the device.
class KeysValues {
 public:
  KeysValues() = default;
  KeysValues(const Graphs &graphs, int64_t num_rows, int64_t num_tokens);

  bool is_empty() const { return !memory_.data(); }
  int64_t num_tokens() const { return num_tokens_; }
  size_t token() const { return token_; }                        // bytes
  size_t pitch() const { return token_ * size_t(num_tokens_); }  // from head to head
  size_t slice() const { return slice_; }                        // from tensor to tensor
  uint8_t *place(int64_t tensor, int64_t row, int64_t token) const {
    return memory_.data() + size_t(tensor) * slice_ + size_t(row * num_heads_) * pitch() + size_t(token) * token_;
  }

 private:
  int64_t num_heads_ = 0, num_tokens_ = 0;
  size_t token_ = 0, slice_ = 0;
  Memory memory_;
};

// Keys and values of rows in slots. Hidden slots have to be finite.
class Cache {
 public:
  Cache(const Graphs &graphs, int64_t num_rows, int64_t num_slots);

  std::vector<int64_t> lengths;  // slots in use, by row
  int64_t num_slots() const { return values_.num_tokens(); }

  // What a graph writes in the classic dialect. Empty in the modern one: there it writes into the cache itself, into its
  // first rows.
  struct Write {
    KeysValues fresh, hidden;
  };
  // Binds the tensors of runs that add tokens. An empty cache is read as one hidden slot where graphs only read it.
  Write bind_write(Binding &binding, int64_t num_rows, int64_t num_tokens, bool is_empty);
  void bind_read(Binding &binding, int64_t num_rows);
  bool takes_any_rows() const { return !graphs_.variant.is_modern(); }

  // Keeps tokens `first` to before `end` of a run, of the graph's row `line`, in a row from `slot` on.
  void keep(const Write &write, int64_t line, int64_t row, int64_t first, int64_t end, int64_t slot);
  void forget(int64_t row, int64_t length);
  void copy_from(const Cache &other, int64_t length);  // the first row

 private:
  // Tokens of a row of some, from `token` on, into a row of this cache.
  void copy(const KeysValues &some, int64_t line, int64_t token, int64_t count, int64_t row, int64_t slot);
  void bind(Binding &binding, const KeysValues &some, int64_t num_rows, bool is_output) const;
  const Graphs &graphs_;
  KeysValues values_;
};

// What else text_decoder reads, for texts without images whose next token nobody wants.
struct TextInputs {
  TextInputs(const Graphs &graphs, int64_t num_rows, int64_t answer_window = 1);
  // `features` [count, d] in the device's memory; none: one that no token is.
  void bind(Binding &binding, const Graphs &graphs, const Memory *features = nullptr);

  int64_t num_rows, answer_window;
  Memory no_features;
  std::vector<int64_t> answer_ids, top_k;
  std::vector<float> gumbel, temperature, top_p, repetition_penalty;
};

using FillNoise = std::function<void(size_t request, int64_t token, float *out)>;

// A token of every request was drawn; a step of every request was made. They raise to give the drawing up.
struct DrawEvents {
  std::function<void(int64_t step, const std::vector<int64_t> &drawn, const std::vector<float> &logits)> token;
  std::function<void(int64_t step, const std::vector<float> &x_t, const std::vector<float> &x_pred)> step;
};

class Drawing {
 public:
  Drawing(const Graphs &graphs, const DrawingPlan &plan, size_t num_requests, int64_t longest_prompt);

  void prefill(const std::vector<std::vector<int64_t>> &prompts);
  // [R][N] as the graph drew them. `forced` [R, N] or nullptr.
  std::vector<std::vector<int64_t>> draw_tokens(const FillNoise &fill_noise, const int64_t *forced, const DrawEvents &events);
  // `x_t` [R, 3, height, width] is the noise, and becomes the pictures.
  void denoise(std::vector<float> &x_t, const DrawEvents &events);

 private:
  class TokenPass;
  const Graphs &graphs_;
  const DrawingPlan &plan_;
  size_t num_requests_;
  Cache cache_;
  std::vector<int64_t> text_lengths_;
};

}  // namespace rf_internal
