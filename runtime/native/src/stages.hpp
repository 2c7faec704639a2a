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

#include "ort.hpp"
#include "plans.hpp"
#include "signature.hpp"
#include "windows.hpp"

namespace rf_internal {

struct Graphs {  // the loaded graphs of a model, and whose they are
  ModelSpec model;
  Variant variant;
  std::map<std::string, std::unique_ptr<OrtSession>> sessions;

  const OrtSession &at(const char *name) const { return *sessions.at(name); }
  size_t kv_bytes() const { return variant.is_half() ? 2 : 4; }
  std::optional<int64_t> cache_slots() const { return at("rep_decoder").signature().cache_slots(); }
};

// Keys and values of rows in slots: [2 L, rows, H, slots, D], zero at first. Hidden slots have to be finite.
class Cache {
 public:
  Cache(const Graphs &graphs, int64_t num_rows, int64_t num_slots);

  std::vector<int64_t> lengths;  // slots in use, by row
  int64_t num_slots() const { return num_slots_; }

  // What a graph writes in the classic dialect: [2 L, rows, H, tokens, D]. Empty in the modern one: there it writes into
  // the cache itself, into its first rows.
  struct Write {
    int64_t num_rows = 0, num_tokens = 0;
    std::vector<uint8_t> fresh, hidden;
    Write() = default;
    Write(Write &&) = default;  // a copy would lie elsewhere than what was bound
    Write &operator=(Write &&) = default;
  };
  // Binds the tensors of runs that add tokens. An empty cache is read as one hidden slot where graphs only read it.
  Write bind_write(OrtBinding &binding, int64_t num_rows, int64_t num_tokens, bool is_empty);
  void bind_read(OrtBinding &binding, int64_t num_rows);
  bool takes_any_rows() const { return !graphs_.variant.is_modern(); }

  // Keeps tokens `first` to before `end` of a run, of the graph's row `line`, in a row from `slot` on.
  void keep(const Write &write, int64_t line, int64_t row, int64_t first, int64_t end, int64_t slot);
  void forget(int64_t row, int64_t length);
  void copy_from(const Cache &other, int64_t length);  // the first row

 private:
  uint8_t *place(int64_t layer, int64_t row, int64_t head, int64_t slot);
  void bind(OrtBinding &binding, const char *prefix, uint8_t *data, int64_t rows, int64_t stride, int64_t slots, bool is_output);
  const Graphs &graphs_;
  int64_t num_rows_, num_slots_;
  std::vector<uint8_t> values_;
};

// What else text_decoder reads, for texts without images whose next token nobody wants.
struct TextInputs {
  TextInputs(const Graphs &graphs, int64_t num_rows, int64_t answer_window = 1);
  void bind(OrtBinding &binding, const Graphs &graphs, const std::vector<uint8_t> *image_features = nullptr);

  int64_t num_rows, answer_window;
  std::vector<uint8_t> no_features;
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
