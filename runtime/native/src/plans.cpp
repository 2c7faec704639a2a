#include "plans.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"
#include "json.hpp"
#include "manifest.hpp"
#include "schedule.hpp"

namespace rf_internal {
namespace {

constexpr int64_t kMaxSteps = 1000, kMaxWindow = 65536;
constexpr double kMaxShift = 1000, kMaxPenalty = 1000, kMaxTemperature = 1e6, kMaxGuidance = 1000;
constexpr double kSmallest = 1e-20;  // of temperature and top_p: below, the most likely token is drawn for sure

std::string told(double value) {
  return std::isnan(value) ? "nan" : std::isinf(value) ? (value < 0 ? "-inf" : "inf") : float_text(value);
}

std::string told(const std::vector<double> &values) {
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(values.size(), 8); ++i) {
    char buffer[32];
    std::snprintf(buffer, sizeof buffer, "%g", values[i]);
    text += (i ? ", " : "") + std::string(buffer);
  }
  if (values.size() > 8) text += ", ... (" + std::to_string(values.size()) + " numbers)";
  return text.empty() ? "nothing" : text;
}

void require_times(const std::vector<double> &times) {
  std::vector<double> rounded;  // as graphs get them
  for (double t : times) rounded.push_back(std::abs(t) < 2 ? double(float(t)) : t);
  if (times.size() < 2 || times.size() > kMaxSteps + 1 || rounded.front() != 0 || rounded.back() != 1)
    throw Error("times must begin with 0 and end with 1, of " + std::to_string(kMaxSteps) + " steps at most, got " +
                told(times) + ".");
  for (size_t i = 1; i < rounded.size(); ++i)
    if (!(rounded[i - 1] < rounded[i])) throw Error("times must increase from one to the next, got " + told(times) + ".");
}

template <class T>
T chosen(const std::optional<T> &first, const std::optional<T> &second, T last) {
  return first ? *first : second ? *second : last;
}

Plan named_plan(const DrawOptions &options, const Manifest &manifest) {
  if (options.plan != "tuned") return {};
  if (!manifest.tuned)
    throw Error("This bundle has no tuned plan. Make one with `rf-export tune`, or draw as the paper does: --plan paper.");
  return *manifest.tuned;
}

std::vector<float> as_floats(const std::vector<double> &values) { return {values.begin(), values.end()}; }

std::vector<float> times_of(const Plan &options, const Plan &plan, const Sampling &defaults, int64_t num_patches) {
  for (const Plan *each : {&options, &plan}) {  // who says anything about steps says all of it
    if (each->times) return as_floats(*each->times);
    if (each->num_steps || each->shift) {
      return timesteps(chosen(options.num_steps, plan.num_steps, defaults.num_steps), num_patches,
                       chosen(options.shift, plan.shift, defaults.shift), defaults.shift_base_patches);
    }
  }
  if (defaults.times) return as_floats(*defaults.times);
  return timesteps(defaults.num_steps, num_patches, defaults.shift, defaults.shift_base_patches);
}

}  // namespace

void Plan::check() const {
  if (num_steps && (*num_steps < 1 || *num_steps > kMaxSteps))
    throw Error("num_steps must be 1 to " + std::to_string(kMaxSteps) + ", got " + std::to_string(*num_steps) + ".");
  if (shift && !(*shift > 0 && *shift <= kMaxShift))
    throw Error("shift must be above 0 and at most 1000, got " + told(*shift) + ".");
  if (times) {
    if (num_steps || shift) throw Error("times say all of the steps: give no num_steps and no shift beside them.");
    require_times(*times);
  }
  if (guided) {
    auto &g = *guided;
    if (!(g.size() == 2 && 0 <= g[0] && g[0] <= g[1] && g[1] <= 1))
      throw Error("guided must be two times between 0 and 1, the smaller one first, got " + told(g) + ".");
  }
  if (window && (*window < 1 || *window > kMaxWindow))
    throw Error("window must be 1 to " + std::to_string(kMaxWindow) + ", got " + std::to_string(*window) + ".");
  for (auto [name, value] : {std::pair("rep_guidance_scale", rep_guidance_scale), {"pix_guidance_scale", pix_guidance_scale}})
    if (value && !(std::abs(*value) <= kMaxGuidance))
      throw Error(std::string(name) + " must be -1000 to 1000, got " + told(*value) + ".");
}

void DrawOptions::check() const {
  Plan::check();
  if (top_k && *top_k < 1) throw Error("top_k must be >= 1, got " + std::to_string(*top_k) + ".");
  if (temperature && !(*temperature >= 0 && *temperature <= kMaxTemperature))
    throw Error("temperature must be >= 0 and at most 1000000, got " + told(*temperature) + ".");
  if (!plan.empty() && plan != "paper" && plan != "tuned")
    throw Error("plan must be \"paper\", \"tuned\" or a Plan, got " + quoted(plan) + ".");
}

DrawingPlan plan_drawing(const DrawOptions &options, const Manifest &manifest, int64_t window) {
  const ModelSpec &model = manifest.model;
  const Sampling &defaults = manifest.sampling;
  Plan plan = named_plan(options, manifest);
  DrawingPlan result;
  int64_t height = result.height = options.height.value_or(model.default_height);
  int64_t width = result.width = options.width.value_or(model.default_width);
  std::string size = std::to_string(height) + " x " + std::to_string(width) + " pixels";
  if (auto problem = model.grid_problem(height, width))
    throw Error("This model cannot draw " + size + ": " + *problem + ".");
  result.rows = height / model.cell(), result.columns = width / model.cell();
  int64_t num_tokens = result.num_rep_tokens();
  if (num_tokens + 2 > model.max_positions)  // the start token, N tokens, one for all pixel patches
    throw Error("This model cannot draw " + size + ": that takes " + std::to_string(num_tokens + 2) +
                " positions and the model has " + std::to_string(model.max_positions) + ". Choose a smaller picture.");
  if (options.window && *options.window > num_tokens + 1)
    throw Error("window must be 1 to " + std::to_string(num_tokens + 1) + " for " + size + ", which have " +
                std::to_string(num_tokens) + " tokens and a start token, got " + std::to_string(*options.window) + ".");
  result.top_k = options.top_k.value_or(defaults.top_k);
  if (result.top_k > model.max_top_k())
    throw Error("top_k must be 1 to " + std::to_string(model.max_top_k()) + " for this model, got " +
                std::to_string(result.top_k) + ".");
  result.temperature = options.temperature.value_or(defaults.temperature);
  result.greedy = result.temperature < kSmallest;
  if (result.greedy) result.temperature = 1, result.top_k = 1;
  result.times = times_of(options, plan, defaults, 4 * num_tokens);
  auto guided = options.guided ? options.guided : plan.guided;
  result.guided = guided ? std::pair((*guided)[0], (*guided)[1]) : defaults.guided;
  result.rep_guidance_scale = chosen(options.rep_guidance_scale, plan.rep_guidance_scale, defaults.rep_guidance_scale);
  result.pix_guidance_scale = chosen(options.pix_guidance_scale, plan.pix_guidance_scale, defaults.pix_guidance_scale);
  result.window = std::min(chosen(options.window, plan.window, window), num_tokens + 1);
  result.noise_scale = defaults.noise_scale;
  return result;
}

void AnswerOptions::check() const {
  for (auto [name, value] : {std::pair("max_tokens", max_tokens), {"top_k", top_k}})
    if (value && *value < 1) throw Error(std::string(name) + " must be >= 1, got " + std::to_string(*value) + ".");
  if (!(temperature >= 0 && temperature <= kMaxTemperature))
    throw Error("temperature must be >= 0 and at most 1000000, got " + told(temperature) + ".");
  if (!(top_p > 0 && top_p <= 1)) throw Error("top_p must be above 0 and at most 1, got " + told(top_p) + ".");
  if (!(repetition_penalty > 0 && repetition_penalty <= kMaxPenalty))
    throw Error("repetition_penalty must be above 0 and at most 1000, got " + told(repetition_penalty) + ".");
}

AnswerPlan plan_answer(const AnswerOptions &options, const Manifest &manifest) {
  if (!manifest.understanding)
    throw Error("This model answers no questions: its bundle says nothing of the ids around a question. If it was "
                "trained to, add a section \"understanding\" with start_id and stop_ids to config.json, and export it "
                "again.");
  int64_t limit = manifest.model.max_text_top_k();
  if (options.top_k && *options.top_k > limit)
    throw Error("top_k must be 1 to " + std::to_string(limit) + " for this model, got " +
                std::to_string(*options.top_k) + ".");
  bool greedy = options.temperature < kSmallest;
  return {options.max_tokens.value_or(manifest.understanding->max_tokens),
          greedy ? 1 : options.top_k.value_or(limit),
          greedy ? 1.0 : options.temperature,
          std::max(options.top_p, kSmallest),
          options.repetition_penalty,
          greedy};
}

}  // namespace rf_internal
