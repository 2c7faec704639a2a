#include "conversation.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.hpp"
#include "noise.hpp"

namespace rf_internal {
namespace {

constexpr const char *kFirstKey = "past_key_values.0.key";
constexpr int64_t kGrowth = 64;  // slots, where each number of them is prepared anew

bool are_finite(const std::vector<uint8_t> &values, size_t bytes_each) {
  for (size_t at = 0; at < values.size(); at += bytes_each) {
    if (bytes_each == 2) {  // a float16 whose exponent is all ones is none
      uint16_t bits;
      std::memcpy(&bits, &values[at], 2);
      if ((bits & 0x7C00) == 0x7C00) return false;
    } else {
      float value;
      std::memcpy(&value, &values[at], 4);
      if (!std::isfinite(value)) return false;
    }
  }
  return true;
}

// Rows of `width` bytes, one after another.
Memory gathered(const Device &device, const std::vector<const uint8_t *> &rows, size_t width) {
  if (rows.empty()) return {};
  Memory all(device, rows.size() * width);
  for (size_t first = 0, end; first < rows.size(); first = end) {  // those of a picture lie one after another already
    for (end = first + 1; end < rows.size() && rows[end] == rows[end - 1] + width;) ++end;
    size_t size = (end - first) * width;
    device.copy({rows[first], size, size, all.data() + first * width, size, size, size, 1, 1});
  }
  return all;
}

}  // namespace

Conversation::Conversation(const Pipeline &pipeline) : pipeline_(pipeline), graphs_(pipeline.graphs()) {
  plan_answer({}, pipeline.manifest());  // refuses a model that answers no questions
  auto fixed = graphs_.at("text_decoder").signature().cache_slots();
  cache_ = std::make_unique<Cache>(graphs_, 1, fixed.value_or(1));
}

void Conversation::refuse_while_answering() const {
  pipeline_.require_own_process();
  if (is_answering_)
    throw Error("An answer is being given. Read it to its end, or close it, before going on.", RF_BUSY);
}

std::vector<int64_t> Conversation::encode(const Prompt &text, const char *what) const {
  auto &manifest = pipeline_.manifest();
  bool is_blank = text.text.find_first_not_of(" \t\r\n") == std::string::npos;
  if (text.ids) return check_ids(*text.ids, manifest, manifest.model.max_positions, what), *text.ids;
  return is_blank ? std::vector<int64_t>() : pipeline_.tokenizer().encode(text.text, manifest.model.max_positions, what);
}

void Conversation::reserve(int64_t num_tokens) {
  int64_t length = cache_->lengths[0], needed = length + num_tokens;
  auto fixed = graphs_.at("text_decoder").signature().cache_slots();
  std::string takes = "That takes " + std::to_string(needed) + " tokens, images included, and ";
  int64_t most = graphs_.model.max_positions;
  if (needed > most)
    throw Error(takes + "the model has " + std::to_string(most) +
                " positions. Ask with fewer or smaller images, a shorter text, or a smaller max_tokens.");
  if (fixed && needed > *fixed)
    throw Error(takes + "these graphs have " + std::to_string(*fixed) +
                " cache slots. Ask with fewer images, a smaller max_tokens, or export with more --cache-slots.");
  if (fixed || needed <= cache_->num_slots()) return;
  auto &decoder = graphs_.at("text_decoder");
  int64_t built_for = decoder.longest(kFirstKey, 2);
  if (needed > built_for)
    throw Error(takes + "this engine was built for " + std::to_string(built_for) + ". Ask with fewer images, a shorter text or "
                "a smaller max_tokens, or build it with a longer --dim prompt.");
  auto larger = std::make_unique<Cache>(graphs_, 1, decoder.padded(kFirstKey, 2, kGrowth, needed));
  larger->copy_from(*cache_, length);
  cache_ = std::move(larger);
}

void Conversation::show(const uint8_t *rgb, int64_t height, int64_t width) {
  refuse_while_answering();
  auto &model = graphs_.model;
  if (auto problem = model.grid_problem(height, width))
    throw Error("This model reads no pictures of " + std::to_string(height) + " x " + std::to_string(width) +
                " pixels: " + *problem + ".");
  size_t size = size_t(height * width);
  std::vector<float> pixels(3 * size);
  for (size_t i = 0; i < size; ++i)
    for (size_t colour = 0; colour < 3; ++colour) pixels[colour * size + i] = float(rgb[3 * i + colour]) / 127.5f - 1.0f;
  int64_t count = (height / model.cell()) * (width / model.cell());
  size_t width_bytes = size_t(model.hidden_size) * graphs_.kv_bytes();
  auto &device = graphs_.device();
  auto features = std::make_shared<const Memory>(device, size_t(count) * width_bytes);
  Binding binding(graphs_.at("vision_encoder"));
  binding.input("pixels", tensor(pixels.data(), {1, 3, height, width}));
  binding.place_output("image_features", kv_tensor(features->data(), graphs_.kv_bytes(), {1, count, model.hidden_size}));
  binding.run();
  std::vector<uint8_t> looked_at(features->num_bytes());
  device.download(looked_at.data(), features->data(), looked_at.size());
  device.wait();
  if (!are_finite(looked_at, graphs_.kv_bytes()))
    throw Error("The numbers overflowed in " + graphs_.variant.precision + ". Use precision fp32.", RF_OVERFLOW);
  require_room(count);
  for (int64_t i = 0; i < count; ++i) {
    ids_.push_back(model.vocab_size + int64_t(features_.size()));
    features_.push_back({features, features->data() + size_t(i) * width_bytes});
  }
}

void Conversation::say(const Prompt &text) {
  refuse_while_answering();
  auto ids = encode(text, "text");
  require_room(int64_t(ids.size()));
  ids_.insert(ids_.end(), ids.begin(), ids.end());
}

Answer Conversation::ask(const Question &question, const OnWord &on_word) {
  refuse_while_answering();
  question.options.check();
  auto &understanding = *pipeline_.manifest().understanding;
  AnswerPlan plan = plan_answer(question.options, pipeline_.manifest());
  if (!question.forced.empty()) {
    auto [least, most] = std::minmax_element(question.forced.begin(), question.forced.end());
    if (*least < 0 || *most >= graphs_.model.vocab_size)
      throw Error("token_ids must be at least one id that the model knows.");
    plan.max_tokens = int64_t(question.forced.size());
  }
  auto words_of_it = encode(question.prompt, "question");
  require_room(1 + int64_t(words_of_it.size()) + plan.max_tokens - 1);
  size_t base = ids_.size();
  ids_.push_back(understanding.start_id);
  ids_.insert(ids_.end(), words_of_it.begin(), words_of_it.end());
  is_answering_ = true;
  std::vector<int64_t> drawn;
  try {
    drawn = draw_answer(question, plan, on_word);
  } catch (...) {
    is_answering_ = false;
    go_back(base);
    throw;
  }
  is_answering_ = false;
  ids_.insert(ids_.end(), drawn.begin(), drawn.end());
  if (question.forget) go_back(base);
  return {words(drawn), drawn, !understanding.stops(drawn.back())};
}

std::string Conversation::words(const std::vector<int64_t> &drawn) const {
  if (!pipeline_.reads_texts()) return "";
  std::vector<int64_t> ids;
  for (int64_t id : drawn)
    if (!pipeline_.manifest().understanding->stops(id)) ids.push_back(id);
  return pipeline_.tokenizer().decode(ids);
}

// The run that reads the prompt draws the first token; every run after that reads the token before and draws the next.
std::vector<int64_t> Conversation::draw_answer(const Question &question, const AnswerPlan &plan, const OnWord &on_word) {
  auto &model = graphs_.model;
  std::vector<int64_t> prompt, drawn;
  std::vector<const uint8_t *> shown_first;
  for (size_t i = num_read(); i < ids_.size(); ++i) {  // what is still to be read, with image tokens counted from 0
    int64_t id = ids_[i];
    if (id >= model.vocab_size) {
      shown_first.push_back(features_[size_t(id - model.vocab_size)].place);
      id = model.vocab_size + int64_t(shown_first.size()) - 1;
    }
    prompt.push_back(id);
  }
  Memory features = gathered(graphs_.device(), shown_first, size_t(model.hidden_size) * graphs_.kv_bytes());
  reserve(int64_t(prompt.size()) + plan.max_tokens - 1);
  bool is_penalised = plan.repetition_penalty != 1;  // without a penalty nobody looks at what was drawn
  TextInputs inputs(graphs_, 1, is_penalised ? std::min(plan.max_tokens, kMaxAnswer) : 1);
  inputs.temperature[0] = float(plan.temperature), inputs.top_k[0] = plan.top_k, inputs.top_p[0] = float(plan.top_p);
  inputs.repetition_penalty[0] = float(plan.repetition_penalty);
  std::vector<float> logits(size_t(model.vocab_size));
  int64_t next_id = 0, last = 0, zero = 0, past_length = 0;
  struct Run {
    Binding binding;
    Cache::Write write;
  };
  auto bind = [&](const int64_t *ids, int64_t count, const Memory *images) {
    std::unique_ptr<Run> run(new Run{Binding(graphs_.at("text_decoder")), {}});
    auto &binding = run->binding;
    binding.input("input_ids", tensor(ids, {1, count}));
    binding.input("row_starts", tensor(&zero, {1}));
    binding.input("past_lengths", tensor(&past_length, {1}));
    inputs.bind(binding, graphs_, images);
    binding.output("next_ids", tensor(&next_id, {1}));
    binding.output("logits", tensor(logits.data(), {1, model.vocab_size}));
    run->write = cache_->bind_write(binding, 1, count, cache_->lengths[0] == 0);
    return run;
  };
  auto run = bind(prompt.data(), int64_t(prompt.size()), &features);
  std::string shown;
  for (int64_t step = 0; step < plan.max_tokens; ++step) {
    if (!plan.greedy) fill_gumbel(question.seed, Stage::text, uint32_t(step), inputs.gumbel.data(), inputs.gumbel.size());
    if (step == 1) run.reset(), run = bind(&last, 1, nullptr);
    past_length = cache_->lengths[0];
    run->binding.run();
    cache_->keep(run->write, 0, 0, 0, step ? 1 : int64_t(prompt.size()), past_length);
    last = question.forced.empty() ? next_id : question.forced[size_t(step)];
    drawn.push_back(last);
    std::string text = words(drawn), added;
    auto ends_with = [&](const std::string &end) {
      return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
    };
    if (text.compare(0, shown.size(), shown) == 0 && !ends_with("\xEF\xBF\xBD")) added = text.substr(shown.size());
    shown += added;
    if (!std::all_of(logits.begin(), logits.end(), [](float value) { return std::isfinite(value); }))
      throw Error("The numbers overflowed in " + graphs_.variant.precision + ": the answer means nothing. Use precision "
                  "fp32.",
                  RF_OVERFLOW);
    if (on_word) on_word(step, plan.max_tokens, next_id, added, logits);
    if (pipeline_.manifest().understanding->stops(last)) break;
    if (is_penalised) inputs.answer_ids[size_t(step % inputs.answer_window)] = last;
  }
  return drawn;
}

void Conversation::rewind(size_t length) {
  refuse_while_answering();
  if (length > ids_.size())
    throw Error("A conversation of " + std::to_string(ids_.size()) + " tokens cannot be rewound to " +
                std::to_string(length) + ".");
  go_back(length);
}

void Conversation::go_back(size_t length) {
  ids_.resize(length);
  features_.resize(size_t(std::count_if(ids_.begin(), ids_.end(), [&](int64_t id) { return id >= graphs_.model.vocab_size; })));
  cache_->forget(0, std::min<int64_t>(cache_->lengths[0], int64_t(length)));
}

}  // namespace rf_internal
