// How a picture is drawn and a question answered: what a caller may choose, and what comes of it for a given model;
// see runtime/options.py and runtime/plans.py. Knows nothing of graphs, prompts and files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace rf_internal {

struct Manifest;

struct Plan {  // how much work goes into a picture; what is not there is what the bundle says
  std::optional<int64_t> num_steps;
  std::optional<double> shift;
  std::optional<std::vector<double>> times;
  std::optional<std::vector<double>> guided;
  std::optional<double> rep_guidance_scale, pix_guidance_scale;
  std::optional<int64_t> window;

  void check() const;  // raises Error for a value that no model takes
};

struct DrawOptions : Plan {
  std::optional<int64_t> height, width, top_k;
  std::optional<double> temperature;
  std::string plan;  // "", "paper", "tuned"

  void check() const;
};

struct DrawingPlan {  // every value that a drawing needs, fit for the model
  int64_t height, width, rows, columns;
  std::vector<float> times;
  std::pair<double, double> guided;
  double rep_guidance_scale, pix_guidance_scale, temperature;
  int64_t top_k;
  bool greedy;  // no noise: the most likely token every time
  int64_t window;
  double noise_scale;

  int64_t num_rep_tokens() const { return rows * columns; }
  int64_t num_steps() const { return int64_t(times.size()) - 1; }
  bool is_guided(double t) const { return pix_guidance_scale != 1 && guided.first <= t && t < guided.second; }
};

// Fills in the bundle's defaults; `window` is for where nobody says it. Raises Error for what the model cannot draw.
DrawingPlan plan_drawing(const DrawOptions &options, const Manifest &manifest, int64_t window);

struct AnswerOptions {
  std::optional<int64_t> max_tokens, top_k;
  double temperature = 0, top_p = 1, repetition_penalty = 1;

  void check() const;
};

struct AnswerPlan {
  int64_t max_tokens, top_k;
  double temperature, top_p, repetition_penalty;
  bool greedy;
};

AnswerPlan plan_answer(const AnswerOptions &options, const Manifest &manifest);

}  // namespace rf_internal
