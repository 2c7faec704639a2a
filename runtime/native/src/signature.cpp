#include "signature.hpp"

#include <algorithm>

#include "error.hpp"

namespace rf_internal {
namespace {

using Shape = std::vector<Dim>;

Dim free_dim(const char *name) { return {0, name}; }
Dim fixed(int64_t size) { return {size, ""}; }

void add_kv(std::vector<TensorSpec> &specs, const char *prefix, const ModelSpec &model, const char *kv,
            const char *rows, Dim slots) {
  for (int64_t i = 0; i < 2 * model.num_layers; ++i)
    specs.push_back(
        {kv_name(prefix, i), kv, {free_dim(rows), fixed(model.num_kv_heads), slots, fixed(model.head_dim)}});
}

bool agree(const TensorSpec &wanted, const TensorSpec *found) {
  if (!found || found->dtype != wanted.dtype || found->shape.size() != wanted.shape.size()) return false;
  for (size_t i = 0; i < wanted.shape.size(); ++i) {
    const Dim &a = wanted.shape[i], &b = found->shape[i];
    if (!(a == b) && !(b.name == "?" && a.is_free())) return false;
  }
  return true;
}

void check_tensors(const char *kind, const std::vector<TensorSpec> &wanted, const std::vector<TensorSpec> &found,
                   const std::string &what) {
  std::vector<bool> is_known(found.size());
  for (auto &spec : wanted) {
    const TensorSpec *other = nullptr;
    for (size_t i = 0; i < found.size(); ++i)
      if (found[i].name == spec.name) other = &found[i], is_known[i] = true;  // the last one of a name counts
    if (!agree(spec, other))
      throw Error(what + ": expected " + kind + " " + spec.words() + ", found " +
                      (other ? other->words() : "nothing of that name") + ". Export the bundle again.",
                  RF_MISMATCH);
  }
  std::string extra;
  for (size_t i = 0; i < found.size(); ++i)
    if (!is_known[i]) extra += (extra.empty() ? "" : ", ") + found[i].words();
  if (!extra.empty())
    throw Error(what + ": unexpected " + kind + " " + extra + ". It was made by another version: export the bundle again.",
                RF_MISMATCH);
}

}  // namespace

const std::vector<const char *> kGraphs = {"text_decoder", "rep_decoder", "denoiser", "vision_encoder"},
                                kPrecisions = {"fp32", "fp16", "int8", "int8-fp16"}, kDialects = {"classic", "modern"};

std::string Variant::options() const {
  return (precision == "fp32" ? "" : " --precision " + precision) + (is_modern() ? " --dialect " + dialect : "");
}

std::optional<std::string> ModelSpec::grid_problem(int64_t height, int64_t width) const {
  for (auto [name, value] : {std::pair("height", height), std::pair("width", width)})
    if (value < cell() || value % cell() || value / cell() > max_grid)
      return std::string(name) + " must be a multiple of " + std::to_string(cell()) + " from " + std::to_string(cell()) +
             " to " + std::to_string(cell() * max_grid) + ", got " + std::to_string(value);
  return std::nullopt;
}

std::string TensorSpec::words() const {
  std::string dims;
  for (auto &dim : shape)
    dims += (&dim == &shape.front() ? "" : ", ") + (dim.is_free() ? dim.name : std::to_string(dim.size));
  return name + " " + dtype + " [" + dims + "]";
}

std::optional<int64_t> GraphSignature::cache_slots() const {
  for (auto &spec : inputs)
    if (spec.name == "past_key_values.0.key" && spec.shape.size() > 2 && !spec.shape[2].is_free())
      return spec.shape[2].size;
  return std::nullopt;
}

const TensorSpec &GraphSignature::input(const std::string &name) const {
  return *std::find_if(inputs.begin(), inputs.end(), [&](auto &each) { return each.name == name; });
}

const TensorSpec &GraphSignature::output(const std::string &name) const {
  return *std::find_if(outputs.begin(), outputs.end(), [&](auto &each) { return each.name == name; });
}

std::string kv_name(const char *prefix, int64_t index) {
  return std::string(prefix) + "." + std::to_string(index / 2) + (index % 2 ? ".value" : ".key");
}

GraphSignature signature_of(const std::string &graph, const ModelSpec &m, const Variant &variant,
                            std::optional<int64_t> cache_slots) {
  const char *kv = variant.is_half() ? "float16" : "float32", *f = "float32", *i = "int64";
  Dim row = free_dim("row"), request = free_dim("request"), batch = free_dim("batch"), window = free_dim("window");
  Dim cache = cache_slots ? fixed(*cache_slots) : free_dim("cache");
  Dim height = free_dim("height"), width = free_dim("width"), text = fixed(m.vocab_size), codes = fixed(m.rep_vocab_size);
  Shape picture = {request, fixed(3), height, width};
  GraphSignature s;
  if (graph == "text_decoder") {
    s.inputs = {{"input_ids", i, {batch, free_dim("sequence")}},
                {"row_starts", i, {batch}},
                {"past_lengths", i, {batch}},
                {"image_features", kv, {free_dim("features"), fixed(m.hidden_size)}},
                {"answer_ids", i, {batch, free_dim("answer")}},
                {"gumbel", f, {batch, text}},
                {"temperature", f, {batch}},
                {"top_k", i, {batch}},
                {"top_p", f, {batch}},
                {"repetition_penalty", f, {batch}}};
    s.outputs = {{"next_ids", i, {batch}}, {"logits", f, {batch, text}}};
    add_kv(s.inputs, "past_key_values", m, kv, "batch", cache);
    add_kv(s.outputs, "present", m, kv, "batch", variant.is_modern() ? cache : free_dim("sequence"));
  } else if (graph == "rep_decoder") {
    s.inputs = {{"rep_ids", i, {request, window}},
                {"grid_positions", i, {request, window, fixed(2)}},
                {"row_requests", i, {row}},
                {"uncond_rows", i, {request}},
                {"row_starts", i, {row}},
                {"past_lengths", i, {row}},
                {"gumbel", f, {request, window, codes}},
                {"guidance_scale", f, {request}},
                {"temperature", f, {request}},
                {"top_k", i, {request}}};
    s.outputs = {{"next_rep_ids", i, {request, window}}, {"logits", f, {request, window, codes}}};
    add_kv(s.inputs, "past_key_values", m, kv, "row", cache);
    add_kv(s.outputs, "present", m, kv, "row", variant.is_modern() ? cache : window);
  } else if (graph == "denoiser") {
    s.inputs = {{"x_t", f, picture},          {"t", f, {request}},           {"t_next", f, {request}},
                {"guidance_scale", f, {request}}, {"row_requests", i, {row}}, {"uncond_rows", i, {request}},
                {"row_starts", i, {request}}, {"past_lengths", i, {request}}};
    s.outputs = {{"x_next", f, picture}, {"x_pred", f, picture}};
    add_kv(s.inputs, "past_key_values", m, kv, "request", cache);
  } else {
    s.inputs = {{"pixels", f, {free_dim("images"), fixed(3), height, width}}};
    s.outputs = {{"image_features", kv, {free_dim("images"), free_dim("tokens"), fixed(m.hidden_size)}}};
  }
  return s;
}

void check_signature(const GraphSignature &expected, const GraphSignature &actual, const std::string &what) {
  check_tensors("input", expected.inputs, actual.inputs, what);
  check_tensors("output", expected.outputs, actual.outputs, what);
}

}  // namespace rf_internal
