#include "pipeline.hpp"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "check_texts.hpp"
#include "error.hpp"
#include "noise.hpp"
#include "tensorrt.hpp"

namespace rf_internal {
namespace {

constexpr const char *kCheckTexts = "check_texts.json";

std::vector<FileEntry> needed_files(const Bundle &bundle, const std::vector<const GraphEntry *> &entries, bool has_engine) {
  std::vector<std::string> names;
  if (!has_engine)
    for (auto entry : entries) names.insert(names.end(), entry->files.begin(), entry->files.end());
  names.push_back(bundle.manifest.tokenizer_file);
  if (bundle.manifest.has_file(kCheckTexts)) names.push_back(kCheckTexts);
  std::vector<FileEntry> files;
  for (auto &name : names) {
    bool is_there = std::any_of(files.begin(), files.end(), [&](auto &each) { return each.name == name; });
    if (!is_there) files.push_back(bundle.manifest.file(name));
  }
  return files;
}

// Tokens that a prompt may have.
int64_t max_prompt_tokens(const DrawingPlan &plan, int64_t max_positions, std::optional<int64_t> cache_slots) {
  // Positions: the text, the start token, N tokens, and one that all pixel patches share.
  int64_t num_tokens = plan.num_rep_tokens(), positions = max_positions - num_tokens - 2;
  if (!cache_slots) return positions;
  if (*cache_slots <= num_tokens)
    throw Error("These graphs have " + std::to_string(*cache_slots) + " cache slots, and a picture of " +
                std::to_string(plan.height) + " x " + std::to_string(plan.width) + " takes " +
                std::to_string(num_tokens + 1) + ". Draw a smaller one, or export with more --cache-slots.");
  return std::min(positions, *cache_slots - num_tokens - 1);
}

void check_forced(const int64_t *forced, size_t num_rows, size_t num_tokens, int64_t limit) {
  auto [least, most] = std::minmax_element(forced, forced + num_rows * num_tokens);
  if (*least < -1 || *most >= limit)
    throw Error("rep_ids must be 0 to " + std::to_string(limit - 1) + ", or -1 to draw one, got " +
                std::to_string(*least) + " to " + std::to_string(*most) + ".");
  for (size_t i = 0; i < num_rows * num_tokens; ++i)
    if ((forced[i] < 0) != (forced[i % num_tokens] < 0))
      throw Error("rep_ids must be -1 at the same places for all prompts. Draw these prompts one by one.");
}

std::unique_ptr<Backend> make_backend(const OpenOptions &options) {
  auto &provider = options.provider;
  if (provider.is_cpu() && !provider.library.empty())
    throw Error("A provider_library needs the name of its execution provider. Give it as provider.");
  bool has_engine = options.engine != "auto" && options.engine != "none";
  if (options.backend == "ort" && has_engine && !provider.is_cpu())
    throw Error("Engines of ONNX Runtime are for its CPU kernels, and the execution provider " + provider.name +
                " was asked for. Leave one of them out.");
  if (options.backend == "ort") return std::make_unique<OrtBackend>(options.library, provider, options.threads);
  if (!options.threads.may_spin)
    throw Error("The backend ort alone can keep its threads from spinning, and " + options.backend + " was asked for.");
  if (!provider.is_cpu())
    throw Error("Execution providers are of ONNX Runtime, and the backend " + options.backend + " was asked for. Leave one of "
                "them out.");
  return std::make_unique<TensorRtBackend>(options.backend, options.backend_library, options.library);
}

}  // namespace

Pipeline::Pipeline(const std::string &path, const OpenOptions &options)
    : process_(getpid()), bundle_(open_bundle(path)), backend_(make_backend(options)) {
  auto &variant = options.variant;
  std::string unknown;
  for (auto &each : manifest().requirements) unknown += (unknown.empty() ? "" : ", ") + each;
  if (!unknown.empty())
    throw Error(bundle_.path + " requires what this rf-export does not know: " + unknown + ". Install a newer one.",
                RF_MISMATCH);
  bool needs_engine = backend_->needs_engine(), has_none = !needs_engine && (variant.is_modern() || !options.provider.is_cpu());
  std::string choice = options.engine == "auto" && has_none ? "none" : options.engine;
  if (choice == "auto") {
    engine_ = find_engine(bundle_, variant, backend_->target(), options.verify, needs_engine, options.warn);
  } else if (choice != "none") {
    engine_ = open_engine(choice);
    check_engine(*engine_, bundle_, variant, backend_->target(), options.verify);
  }
  std::vector<const GraphEntry *> entries;
  for (auto name : kGraphs) entries.push_back(&bundle_.graph(name, variant));
  if (!options.allow_unverified) {
    require_verified(bundle_, variant);
    if (engine_) require_verified(bundle_, *engine_);
  }
  check_files(bundle_.path, needed_files(bundle_, entries, engine_.has_value()), options.verify);
  graphs_.model = manifest().model, graphs_.variant = variant;
  for (auto entry : entries) {
    std::string file = engine_ ? engine_->file(entry->name) : bundle_.file(entry->file);
    auto session = backend_->open(file, engine_.has_value());
    check_signature(entry->signature, session->signature(), file);
    graphs_.sessions[entry->name] = std::move(session);
  }
  std::vector<int64_t> control;
  if (auto &ids = manifest().understanding) control = ids->stop_ids, control.push_back(ids->start_id);
  try {
    auto made = Tokenizer::read(bundle_.file(manifest().tokenizer_file), manifest().model.vocab_size, control);
    if (auto path = bundle_.file(kCheckTexts); manifest().has_file(kCheckTexts)) replay_check_texts(*made, read_json(path), path);
    tokenizer_ = std::move(made);
  } catch (const Error &error) {
    if (error.status != RF_UNSUPPORTED) throw;
    no_tokenizer_ = error.what();
  }
}

const Tokenizer &Pipeline::tokenizer() const {
  if (!tokenizer_) throw Error(no_tokenizer_, RF_UNSUPPORTED);
  return *tokenizer_;
}

void Pipeline::require_own_process() const {
  if (process_ != getpid())
    throw Error("This process was forked from the one that loaded the pipeline, and the threads and devices behind it "
                "stayed there. Load the pipeline here, after the fork (docs/robustness.md), or start processes with the "
                "method spawn.");
}

std::string Pipeline::info() const {
  auto text = [](const std::string &value) { return Json(value); };
  Json::Object info;
  info.emplace_back("bundle_id", text(manifest().bundle_id));
  info.emplace_back("precision", text(graphs_.variant.precision));
  info.emplace_back("dialect", text(graphs_.variant.dialect));
  info.emplace_back("engine", engine_ ? text(engine_->path) : Json());
  info.emplace_back("backend", text(backend_->needs_engine() ? backend_->provider() : "ort"));
  info.emplace_back("library", text(backend_->words()));
  info.emplace_back("provider", text(backend_->provider()));
  info.emplace_back("tokenizer", tokenizer_ ? text(tokenizer_->kind()) : Json());
  for (auto name : {"model", "sampling", "understanding", "tuned"}) info.emplace_back(name, manifest().document[name]);
  return Json(std::move(info)).dump();
}

void check_ids(const std::vector<int64_t> &ids, const Manifest &manifest, int64_t max_tokens, const std::string &what) {
  for (int64_t id : ids)
    if (id < 0 || id >= manifest.model.vocab_size)
      throw Error("The ids of a " + what + " must be 0 to " + std::to_string(manifest.model.vocab_size - 1) + ", got " +
                  std::to_string(id) + ".");
  if (int64_t(ids.size()) > max_tokens)
    throw Error("The " + what + " has " + std::to_string(ids.size()) + " tokens and the model takes " +
                std::to_string(max_tokens) + (what == "prompt" ? " for this size of picture" : "") + ". Shorten it.");
}

Request check_request(const Pipeline &pipeline, const std::vector<Prompt> &prompts, uint64_t seed,
                      const DrawOptions &options, const int64_t *forced) {
  std::string count = std::to_string(prompts.size());
  if (prompts.empty()) throw Error("Give the prompts as a list of at least one text: generate([\"a red car\"]).");
  if (seed > UINT64_MAX - (prompts.size() - 1))
    throw Error("seed must be 0 to 2**64 - " + count + " for " + count + " prompts, got " + std::to_string(seed) + ".");
  options.check();
  auto &manifest = pipeline.manifest();
  Request request{seed, plan_drawing(options, manifest, pipeline.window()), {}, forced};
  int64_t most = max_prompt_tokens(request.plan, manifest.model.max_positions, pipeline.graphs().cache_slots());
  for (auto &prompt : prompts) {
    bool is_blank = prompt.text.find_first_not_of(" \t\r\n") == std::string::npos;  // needs no tokenizer
    if (prompt.ids) check_ids(*prompt.ids, manifest, most, "prompt"), request.ids.push_back(*prompt.ids);
    else request.ids.push_back(is_blank ? std::vector<int64_t>() : pipeline.tokenizer().encode(prompt.text, most, "prompt"));
  }
  if (forced) check_forced(forced, prompts.size(), size_t(request.plan.num_rep_tokens()), manifest.model.rep_vocab_size);
  return request;
}

Pictures draw(const Pipeline &pipeline, const Request &request, const DrawEvents &events) {
  pipeline.require_own_process();
  auto &plan = request.plan;
  size_t count = request.ids.size(), longest = 0, num_pixels = 3 * size_t(plan.height) * size_t(plan.width);
  for (auto &ids : request.ids) longest = std::max(longest, ids.size());
  Drawing drawing(pipeline.graphs(), plan, count, int64_t(longest));
  drawing.prefill(request.ids);
  auto codes = size_t(pipeline.manifest().model.rep_vocab_size);
  auto fill = [&](size_t row, int64_t token, float *out) {
    fill_gumbel(request.seed + row, Stage::representation, uint32_t(token), out, codes);
  };
  auto drawn = drawing.draw_tokens(fill, request.forced, events);
  Pictures pictures;
  pictures.pixels.resize(count * num_pixels);
  for (size_t row = 0; row < count; ++row) {
    float *first = &pictures.pixels[row * num_pixels];
    fill_normal(request.seed + row, first, num_pixels);
    if (plan.noise_scale != 1)
      std::for_each(first, first + num_pixels, [&](float &value) { value *= float(plan.noise_scale); });
  }
  drawing.denoise(pictures.pixels, events);
  if (!std::all_of(pictures.pixels.begin(), pictures.pixels.end(), [](float value) { return std::isfinite(value); }))
    throw Error("The numbers overflowed in " + pipeline.graphs().variant.precision + ": the picture is not finite. Use "
                "precision fp32, or a smaller guidance scale.",
                RF_OVERFLOW);
  for (auto &row : drawn)
    for (int64_t id : row) {
      size_t at = pictures.rep_ids.size();
      pictures.rep_ids.push_back(request.forced && request.forced[at] >= 0 ? request.forced[at] : id);
    }
  return pictures;
}

void to_rgb(const float *pixels, int64_t height, int64_t width, uint8_t *rgb) {
  int64_t size = height * width;
  for (int64_t i = 0; i < size; ++i)
    for (int64_t colour = 0; colour < 3; ++colour) {
      float scaled = (pixels[colour * size + i] + 1.0f) * 127.5f;
      rgb[3 * i + colour] = uint8_t(std::nearbyint(scaled > 0.0f ? std::min(scaled, 255.0f) : 0.0f));
    }
}

}  // namespace rf_internal
