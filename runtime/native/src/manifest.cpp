#include "manifest.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"
#include "sha256.hpp"
#include "unicode.hpp"
#include "utf8.hpp"

namespace rf_internal {
namespace {

Schema of(Schema::Type type, const char *expected) {
  Schema schema;
  schema.type = type, schema.expected = expected;
  return schema;
}

Schema number(const char *expected, double least, double most, bool is_above = false) {
  Schema schema = of(Schema::number, expected);
  schema.least = least, schema.most = most, schema.is_above = is_above;
  return schema;
}

Schema list_of(const Schema *item, const char *expected = "a list", size_t num_items = 0, size_t least_items = 0) {
  Schema schema = of(Schema::list, expected);
  schema.item = item, schema.num_items = num_items, schema.least_items = least_items;
  return schema;
}

Schema table_of(const Schema *item) {
  Schema schema = of(Schema::table, "an object");
  schema.key = &kText, schema.item = item;
  return schema;
}

Schema choice(std::vector<const char *> choices, const char *expected) {
  Schema schema = of(Schema::choice, expected);
  schema.choices = std::move(choices);
  return schema;
}

Schema record(std::vector<Field> fields, decltype(Schema::rules) rules = nullptr) {
  Schema schema = of(Schema::record, "an object");
  schema.fields = std::move(fields), schema.rules = std::move(rules);
  return schema;
}

Schema or_null(Schema schema) {
  schema.may_be_null = true;
  return schema;
}

constexpr int64_t kFormatVersion = 3, kOldestVersion = 2;  // that the Python runtime reads
constexpr double kLargest = std::numeric_limits<double>::max();

std::vector<double> reals(const Json &list) {
  std::vector<double> values;
  for (auto &item : *list.list()) values.push_back(item.real());
  return values;
}

Plan read_plan(const Json &j) {
  Plan plan;
  auto whole = [&](const char *name) { return j[name].is_null() ? std::nullopt : std::optional(j[name].whole()); };
  auto real = [&](const char *name) { return j[name].is_null() ? std::nullopt : std::optional(j[name].real()); };
  auto list = [&](const char *name) { return j[name].is_null() ? std::nullopt : std::optional(reals(j[name])); };
  plan.num_steps = whole("num_steps"), plan.shift = real("shift"), plan.times = list("times");
  plan.guided = list("guided"), plan.window = whole("window");
  plan.rep_guidance_scale = real("rep_guidance_scale"), plan.pix_guidance_scale = real("pix_guidance_scale");
  return plan;
}

std::optional<std::string> plan_problem(const Plan &plan) {
  try {
    plan.check();
  } catch (const Error &error) {
    return error.what();
  }
  return std::nullopt;
}

std::optional<std::string> sampling_rules(const Json &j) {
  Plan plan;
  if (!j["times"].is_null()) plan.times = reals(j["times"]);
  if (!j["guided"].is_null()) plan.guided = reals(j["guided"]);
  return plan_problem(plan);
}

ModelSpec read_model(const Json &j) {
  auto at = [&](const char *name) { return j[name].whole(); };
  return {at("patch_size"),   at("max_grid"),       at("default_height"), at("default_width"),
          at("hidden_size"),  at("num_layers"),     at("num_kv_heads"),   at("head_dim"),
          at("vocab_size"),   at("rep_vocab_size"), at("rep_start_id"),   at("max_positions")};
}

std::optional<std::string> model_rules(const Json &j) {
  if (j["num_layers"].whole() > kMaxLayers)  // a damaged manifest must not fill the memory
    return "num_layers must be at most " + std::to_string(kMaxLayers) + ", got " + j["num_layers"].dump();
  ModelSpec model = read_model(j);
  if (model.patch_size > (int64_t(1) << 31) || model.max_grid > (int64_t(1) << 31) || model.vocab_size > (int64_t(1) << 40))
    return "these sizes are beyond any machine";  // products of them would overflow
  return model.grid_problem(model.default_height, model.default_width);
}

const Schema kHash = of(Schema::hash, "64 hexadecimal digits");

std::optional<std::string> manifest_rules(const Json &j);

struct Schemas {
  Schema positive_or_none = or_null([] {
    Schema schema = of(Schema::whole, "a whole number >= 1");
    schema.least = 1;
    return schema;
  }());
  Schema finite = number("a finite number", -kLargest, kLargest), finite_or_none = or_null(finite);
  Schema share = number("a number from 0 to 1", 0, 1), not_negative = number("a finite number >= 0", 0, kLargest);
  Schema above = number("a finite number > 0", 0, kLargest, true);
  Schema times = or_null(list_of(&share)), pair = list_of(&share, "a list", 2), pair_or_none = or_null(pair);
  Schema ids = list_of(&kNotNegative, "a list of one id at least", 0, 1), texts = list_of(&kText);
  Schema strings = table_of(&kText);
  Schema dim = of(Schema::dim, "a size >= 1 or a text"), shape = list_of(&dim);
  Schema tensor = record({{"name", &kText}, {"dtype", &kText}, {"shape", &shape}}), tensors = list_of(&tensor);
  Schema model = record({{"patch_size", &kPositive}, {"max_grid", &kPositive}, {"default_height", &kPositive},
                         {"default_width", &kPositive}, {"hidden_size", &kPositive}, {"num_layers", &kPositive},
                         {"num_kv_heads", &kPositive}, {"head_dim", &kPositive}, {"vocab_size", &kPositive},
                         {"rep_vocab_size", &kPositive}, {"rep_start_id", &kPositive}, {"max_positions", &kPositive},
                         {"num_parameters", &kPositive}, {"num_heads", &positive_or_none, false},
                         {"ffn_size", &positive_or_none, false}},
                        model_rules);
  Schema sampling = record({{"num_steps", &kPositive}, {"rep_guidance_scale", &finite}, {"pix_guidance_scale", &finite},
                            {"temperature", &not_negative}, {"top_k", &kPositive}, {"shift", &above},
                            {"shift_base_patches", &positive_or_none, false}, {"times", &times, false},
                            {"guided", &pair, false}, {"noise_scale", &above, false}},
                           sampling_rules);
  Schema tuned = or_null(record(
      {{"num_steps", &positive_or_none, false}, {"shift", &finite_or_none, false}, {"times", &times, false},
       {"guided", &pair_or_none, false}, {"rep_guidance_scale", &finite_or_none, false},
       {"pix_guidance_scale", &finite_or_none, false}, {"window", &positive_or_none, false}, {"evidence", &kObject, false}},
      [](const Json &j) { return plan_problem(read_plan(j)); }));
  Schema understanding =
      or_null(record({{"start_id", &kNotNegative}, {"stop_ids", &ids}, {"max_tokens", &kPositive}}));
  Schema tokenizer = record({{"file", &kText}});
  Schema graph = record({{"name", &kGraphName}, {"precision", &kPrecision}, {"dialect", &kDialect},
                         {"opset", &kPositive}, {"file", &kText}, {"weights", &texts}, {"lint", &texts, false},
                         {"inputs", &tensors}, {"outputs", &tensors}}),
         graphs = list_of(&graph);
  Schema files = table_of(&kFileEntry), verified = table_of(&kObject);
  Schema manifest = record({{"created_by", &strings}, {"checkpoint", &strings}, {"model", &model},
                            {"sampling", &sampling}, {"understanding", &understanding, false},
                            {"tokenizer", &tokenizer}, {"graphs", &graphs}, {"files", &files},
                            {"verified", &verified}, {"tuned", &tuned, false}, {"requires", &texts, false}},
                           manifest_rules);
};

const Schemas &schemas() {
  static const Schemas all;
  return all;
}

GraphSignature read_signature(const Json &graph) {
  auto tensors = [](const Json &list) {
    std::vector<TensorSpec> specs;
    for (auto &each : *list.list()) {
      TensorSpec spec{*each["name"].text(), *each["dtype"].text(), {}};
      for (auto &dim : *each["shape"].list()) spec.shape.push_back(dim.text() ? Dim{0, *dim.text()} : Dim{dim.whole(), ""});
      specs.push_back(std::move(spec));
    }
    return specs;
  };
  return {tensors(graph["inputs"]), tensors(graph["outputs"])};
}

GraphEntry read_graph(const Json &j) {
  GraphEntry entry{*j["name"].text(), *j["file"].text(), {*j["precision"].text(), *j["dialect"].text()}, {}, read_signature(j)};
  entry.files.push_back(entry.file);
  for (auto &name : *j["weights"].list()) entry.files.push_back(*name.text());
  return entry;
}

std::optional<std::string> manifest_rules(const Json &j) {
  std::vector<GraphEntry> graphs;
  std::vector<std::string> names;
  for (auto &each : *j["graphs"].list()) {
    graphs.push_back(read_graph(each));
    for (auto &file : graphs.back().files) names.push_back(file);
  }
  names.push_back(*j["tokenizer"]["file"].text());
  if (auto problem = table_problem(j["files"], names)) return problem;
  for (auto &graph : graphs)
    if (std::count_if(graphs.begin(), graphs.end(),
                      [&](auto &each) { return each.name == graph.name && each.variant == graph.variant; }) > 1)
      return "graph " + graph.name + " " + graph.variant.words() + " is there twice";
  for (auto &one : graphs)
    for (auto &other : graphs)
      if (one.name != "vision_encoder" && other.name != "vision_encoder" && one.variant == other.variant &&
          one.signature.cache_slots() != other.signature.cache_slots())
        return "the " + one.variant.words() + " graphs have caches of different lengths";
  ModelSpec model = read_model(j["model"]);
  if (j["sampling"]["top_k"].whole() > model.max_top_k())
    return "top_k must be at most " + std::to_string(model.max_top_k()) + ", got " + j["sampling"]["top_k"].dump();
  auto &understanding = j["understanding"];
  if (!understanding.is_null()) {
    int64_t largest = understanding["start_id"].whole();
    for (auto &id : *understanding["stop_ids"].list()) largest = std::max(largest, id.whole());
    if (largest >= model.vocab_size)
      return "understanding has id " + std::to_string(largest) + ", and the model knows " + std::to_string(model.vocab_size);
  }
  return std::nullopt;
}

}  // namespace

const Schema kGraphName = choice({"text_decoder", "rep_decoder", "denoiser", "vision_encoder"},
                                 "'text_decoder' or 'rep_decoder' or 'denoiser' or 'vision_encoder'");
const Schema kPrecision = choice({"fp32", "fp16", "int8", "int8-fp16"}, "'fp32' or 'fp16' or 'int8' or 'int8-fp16'");
const Schema kDialect = choice({"classic", "modern"}, "'classic' or 'modern'");
const Schema kFileEntry = record({{"sha256", &kHash}, {"size", &kNotNegative}});

bool Understanding::stops(int64_t id) const { return std::find(stop_ids.begin(), stop_ids.end(), id) != stop_ids.end(); }

const FileEntry &Manifest::file(const std::string &name) const {
  return *std::find_if(files.begin(), files.end(), [&](auto &each) { return each.name == name; });
}

bool Manifest::has_file(const std::string &name) const {
  return std::any_of(files.begin(), files.end(), [&](auto &each) { return each.name == name; });
}

std::vector<const GraphEntry *> Manifest::graphs_of(const Variant &variant) const {
  std::vector<const GraphEntry *> found;
  for (auto &graph : graphs)
    if (graph.variant == variant) found.push_back(&graph);
  return found;
}

std::string bundle_id_of(std::vector<FileEntry> files) {
  std::sort(files.begin(), files.end(), [](auto &a, auto &b) { return a.name < b.name; });
  std::string lines;
  for (auto &file : files) lines += file.sha256 + " " + std::to_string(file.size) + " " + file.name + "\n";
  return sha256(lines).substr(0, 16);
}

std::vector<FileEntry> read_files(const Json &table) {
  std::vector<FileEntry> files;
  for (auto &[name, entry] : *table.object()) files.push_back({name, *entry["sha256"].text(), entry["size"].whole()});
  return files;
}

std::optional<std::string> table_problem(const Json &files, const std::vector<std::string> &names) {
  for (auto &[name, entry] : *files.object()) {
    bool is_inside = !name.empty() && name.find_first_of("\\:") == std::string::npos;
    for (uint32_t code : code_points(name)) is_inside = is_inside && is_printable(code);
    for (size_t start = 0; start <= name.size();) {  // no part is empty, "." or ".."
      size_t end = std::min(name.find('/', start), name.size());
      std::string part = name.substr(start, end - start);
      is_inside = is_inside && !part.empty() && part != "." && part != ".." && part.size() <= 255;
      start = end + 1;
    }
    if (!is_inside) return quoted(name) + " is not a path inside the folder";
  }
  for (auto &name : names)
    if (files[name].is_null()) return quoted(name) + " is not in the table of files";
  return std::nullopt;
}

Manifest read_manifest(const Json &content, const std::string &where) {
  Json j = read_document(content, where, "rf-export-bundle", kFormatVersion, "Export the bundle", kOldestVersion);
  if (content["format_version"].whole() != kFormatVersion)
    throw Error(where + ": the bundle is in format 2, whose graphs the native host does not run. Export it again.",
                RF_UNSUPPORTED);
  Json found_id = j["bundle_id"];
  auto &members = *j.object();
  members.erase(std::remove_if(members.begin(), members.end(), [](auto &each) { return each.first == "bundle_id"; }),
                members.end());
  check_schema(schemas().manifest, j, where);
  Manifest m;
  m.model = read_model(j["model"]);
  auto &s = j["sampling"];
  auto or_else = [](const Json &value, auto otherwise) { return value.is_null() ? otherwise : decltype(otherwise)(value.real()); };
  m.sampling = {s["num_steps"].whole(),
                s["top_k"].whole(),
                s["rep_guidance_scale"].real(),
                s["pix_guidance_scale"].real(),
                s["temperature"].real(),
                s["shift"].real(),
                s["shift_base_patches"].is_null() ? 0 : s["shift_base_patches"].whole(),
                s["times"].is_null() ? std::nullopt : std::optional(reals(s["times"])),
                s["guided"].is_null() ? std::pair(0.0, 1.0) : std::pair(reals(s["guided"])[0], reals(s["guided"])[1]),
                or_else(s["noise_scale"], 1.0)};
  if (auto &u = j["understanding"]; !u.is_null()) {
    m.understanding = Understanding{u["start_id"].whole(), u["max_tokens"].whole(), {}};
    for (auto &id : *u["stop_ids"].list()) m.understanding->stop_ids.push_back(id.whole());
  }
  if (!j["tuned"].is_null()) m.tuned = read_plan(j["tuned"]);
  m.tokenizer_file = *j["tokenizer"]["file"].text();
  for (auto &graph : *j["graphs"].list()) m.graphs.push_back(read_graph(graph));
  m.files = read_files(j["files"]);
  m.bundle_id = bundle_id_of(m.files);
  m.verified = j["verified"];
  for (size_t i = 0; i < m.graphs.size(); ++i) {
    auto &graph = m.graphs[i];
    auto slots = graph.variant.is_modern() ? graph.signature.cache_slots() : std::nullopt;
    check_signature(signature_of(graph.name, m.model, graph.variant, slots), graph.signature,
                    where + ", graphs[" + std::to_string(i) + "]");
  }
  if (!found_id.text() || *found_id.text() != m.bundle_id)
    throw Error(where + ": 'bundle_id' must be " + quoted(m.bundle_id) + " as the table of files has it, found " +
                    shortened(found_id) + ": it was changed. Export the bundle again.",
                RF_DAMAGED);
  if (auto required = j["requires"].list())
    for (auto &each : *required) m.requirements.push_back(*each.text());
  m.document = std::move(j);
  return m;
}

}  // namespace rf_internal
