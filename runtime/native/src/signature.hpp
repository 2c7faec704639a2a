// What goes into every graph and what comes out, after runtime/signature.py. Knows nothing of files and libraries.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace rf_internal {

extern const std::vector<const char *> kGraphs, kPrecisions, kDialects;
constexpr int64_t kMaxLayers = 1024, kMaxAnswer = 256, kMaxTopK = 1024;

struct Variant {
  std::string precision = "fp32", dialect = "classic";
  bool is_half() const { return precision == "fp16" || precision == "int8-fp16"; }
  bool is_modern() const { return dialect == "modern"; }
  std::string words() const { return precision + " " + dialect; }
  std::string key() const { return is_modern() ? precision + "." + dialect : precision; }
  std::string options() const;  // how a command is told them
  bool operator==(const Variant &other) const { return precision == other.precision && dialect == other.dialect; }
};

struct ModelSpec {
  int64_t patch_size, max_grid, default_height, default_width, hidden_size, num_layers, num_kv_heads, head_dim,
      vocab_size, rep_vocab_size, rep_start_id, max_positions;

  int64_t cell() const { return 2 * patch_size; }
  int64_t max_top_k() const { return rep_vocab_size < kMaxTopK ? rep_vocab_size : kMaxTopK; }
  int64_t max_text_top_k() const { return vocab_size < kMaxTopK ? vocab_size : kMaxTopK; }
  // Rows and columns of representation tokens, or why there are none.
  std::optional<std::string> grid_problem(int64_t height, int64_t width) const;
};

struct Dim {  // a size, or the name of a free dimension, which may be empty
  int64_t size = 0;
  std::string name;
  bool is_free() const { return size == 0; }
  bool operator==(const Dim &other) const { return size == other.size && name == other.name; }
};

struct TensorSpec {
  std::string name, dtype;
  std::vector<Dim> shape;
  std::string words() const;
};

struct GraphSignature {
  std::vector<TensorSpec> inputs, outputs;
  std::optional<int64_t> cache_slots() const;
  const TensorSpec &input(const std::string &name) const;
  const TensorSpec &output(const std::string &name) const;
};

// The signature that a graph of this model must have.
GraphSignature signature_of(const std::string &graph, const ModelSpec &model, const Variant &variant,
                            std::optional<int64_t> cache_slots);

// Raises Error (mismatch) that names the first tensor that differs.
void check_signature(const GraphSignature &expected, const GraphSignature &actual, const std::string &what);

// Name of a cache tensor: key and value of layer 0, key and value of layer 1, ...
std::string kv_name(const char *prefix, int64_t index);

}  // namespace rf_internal
