// A bundle whose graphs are loaded, and a drawing with it from checked request to pictures; see runtime/loading.py,
// request.py and pipeline.py. Everything that is refused is refused before a graph runs. Knows nothing of the C API's
// structs but rf_status.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "engine.hpp"
#include "ort.hpp"
#include "plans.hpp"
#include "stages.hpp"
#include "tokenizer.hpp"

namespace rf_internal {

struct OpenOptions {
  Variant variant;
  std::string engine = "auto", backend = "ort", backend_library, library;
  Provider provider;
  Verify verify = Verify::automatic;
  Threads threads;
  bool allow_unverified = false;
  Warn warn = [](const std::string &) {};
};

class Pipeline {
 public:
  Pipeline(const std::string &bundle, const OpenOptions &options);

  const Manifest &manifest() const { return bundle_.manifest; }
  const Graphs &graphs() const { return graphs_; }
  // Raises Error (unsupported) where the bundle's tokenizer is of a kind that is not read.
  const Tokenizer &tokenizer() const;
  bool reads_texts() const { return tokenizer_ != nullptr; }
  int64_t window() const { return engine_ ? engine_->window : 1; }
  void require_own_process() const;  // raises Error in a child of the process that opened it
  std::string info() const;          // JSON

 private:
  int process_;
  Bundle bundle_;
  std::unique_ptr<Backend> backend_;
  std::optional<Engine> engine_;
  Graphs graphs_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::string no_tokenizer_;
};

struct Prompt {
  std::string text;
  std::optional<std::vector<int64_t>> ids;  // in place of the text
};

struct Request {  // pictures to draw; every value is fit for the model
  uint64_t seed;
  DrawingPlan plan;
  std::vector<std::vector<int64_t>> ids;
  const int64_t *forced;
};

// Raises Error for a prompt or an option that the model cannot take.
Request check_request(const Pipeline &pipeline, const std::vector<Prompt> &prompts, uint64_t seed,
                      const DrawOptions &options, const int64_t *forced);

struct Pictures {
  std::vector<float> pixels;     // [R, 3, height, width]
  std::vector<int64_t> rep_ids;  // [R, N]
};

Pictures draw(const Pipeline &pipeline, const Request &request, const DrawEvents &events);

// [3, height, width] from -1 to 1 as [height, width, 3] from 0 to 255, rounded to the nearest.
void to_rgb(const float *pixels, int64_t height, int64_t width, uint8_t *rgb);

// Ids that came in place of a text; raises Error where the model does not know one.
void check_ids(const std::vector<int64_t> &ids, const Manifest &manifest, int64_t max_tokens, const std::string &what);

}  // namespace rf_internal
