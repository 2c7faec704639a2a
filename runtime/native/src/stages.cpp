#include "stages.hpp"

#include <algorithm>
#include <cstring>
#include <optional>

#include "error.hpp"

namespace rf_internal {
namespace {

// Whose row each is, and which row is the unconditional one of each request.
struct Rows {
  std::vector<int64_t> requests, uncond;
  Rows(size_t num_requests, bool guided) {
    auto count = int64_t(num_requests);
    for (int64_t i = 0; i < count; ++i) requests.push_back(i);
    for (int64_t i = 0; i < count; ++i) uncond.push_back(guided ? count + i : i);
    if (guided) for (int64_t i = 0; i < count; ++i) requests.push_back(i);
  }
};

int64_t slots_of(const Graphs &graphs, int64_t longest_prompt, int64_t num_tokens) {
  if (auto fixed = graphs.cache_slots()) return *fixed;
  int64_t slots = graphs.padded_prompt(longest_prompt) + num_tokens + 1;
  for (auto name : {"rep_decoder", "denoiser"}) slots = graphs.at(name).padded("past_key_values.0.key", 2, 1, slots);
  return slots;
}

}  // namespace

KeysValues::KeysValues(const Graphs &graphs, int64_t num_rows, int64_t num_tokens)
    : num_heads_(graphs.model.num_kv_heads), num_tokens_(num_tokens),
      token_(size_t(graphs.model.head_dim) * graphs.kv_bytes()) {
  int64_t step = 1;  // heads that end on a boundary
  size_t alignment = graphs.device().alignment();
  while (size_t(step) * pitch() % alignment) step *= 2;
  int64_t heads = (num_rows * num_heads_ + step - 1) / step * step;
  slice_ = num_elements({heads, num_tokens, int64_t(token_)});
  memory_ = Memory(graphs.device(), num_elements({2 * graphs.model.num_layers, int64_t(slice_)}));
}

Cache::Cache(const Graphs &graphs, int64_t num_rows, int64_t num_slots)
    : lengths(size_t(num_rows)), graphs_(graphs), values_(graphs, num_rows, num_slots) {}

void Cache::bind(Binding &binding, const KeysValues &some, int64_t num_rows, bool is_output) const {
  auto &m = graphs_.model;
  for (int64_t i = 0; i < 2 * m.num_layers; ++i) {
    Tensor view = kv_tensor(some.place(i, 0, 0), graphs_.kv_bytes(), {num_rows, m.num_kv_heads, some.num_tokens(), m.head_dim});
    if (is_output) binding.place_output(kv_name("present", i), view);
    else binding.place_input(kv_name("past_key_values", i), view);
  }
}

Cache::Write Cache::bind_write(Binding &binding, int64_t num_rows, int64_t num_tokens, bool is_empty) {
  Write write;
  if (graphs_.variant.is_modern()) {
    bind_read(binding, num_rows);
    bind(binding, values_, num_rows, true);
    return write;
  }
  write.fresh = KeysValues(graphs_, num_rows, num_tokens);
  bind(binding, write.fresh, num_rows, true);
  if (is_empty) write.hidden = KeysValues(graphs_, num_rows, 1);
  bind(binding, is_empty ? write.hidden : values_, num_rows, false);
  return write;
}

void Cache::bind_read(Binding &binding, int64_t num_rows) { bind(binding, values_, num_rows, false); }

void Cache::copy(const KeysValues &some, int64_t line, int64_t token, int64_t count, int64_t row, int64_t slot) {
  auto &m = graphs_.model;
  graphs_.device().copy({some.place(0, line, token), some.pitch(), some.slice(), values_.place(0, row, slot), values_.pitch(),
                         values_.slice(), size_t(count) * some.token(), size_t(m.num_kv_heads), size_t(2 * m.num_layers)});
}

void Cache::keep(const Write &write, int64_t line, int64_t row, int64_t first, int64_t end, int64_t slot) {
  if (!write.fresh.is_empty() && end > first) copy(write.fresh, line, first, end - first, row, slot);
  lengths[size_t(row)] = slot + end - first;
}

void Cache::forget(int64_t row, int64_t length) {
  size_t rest = size_t(num_slots() - length) * values_.token();
  for (int64_t i = 0; rest && i < 2 * graphs_.model.num_layers; ++i)
    graphs_.device().zero_rows(values_.place(i, row, length), values_.pitch(), rest, size_t(graphs_.model.num_kv_heads));
  lengths[size_t(row)] = length;
}

void Cache::copy_from(const Cache &other, int64_t length) {
  if (length) copy(other.values_, 0, 0, length, 0, 0);
  lengths[0] = length;
}

TextInputs::TextInputs(const Graphs &graphs, int64_t num_rows, int64_t answer_window)
    : num_rows(num_rows), answer_window(answer_window), no_features(graphs.device(), size_t(graphs.model.hidden_size) * graphs.kv_bytes()),
      answer_ids(size_t(num_rows * answer_window), graphs.model.vocab_size), top_k(size_t(num_rows), 1),
      gumbel(num_elements({num_rows, graphs.model.vocab_size})), temperature(size_t(num_rows), 1.0f),
      top_p(size_t(num_rows), 1.0f), repetition_penalty(size_t(num_rows), 1.0f) {}

void TextInputs::bind(Binding &binding, const Graphs &graphs, const Memory *features) {
  auto &given = features && features->num_bytes() ? *features : no_features;
  int64_t width = graphs.model.hidden_size, count = int64_t(given.num_bytes() / graphs.kv_bytes()) / width;
  binding.place_input("image_features", kv_tensor(given.data(), graphs.kv_bytes(), {count, width}));
  binding.input("answer_ids", tensor(answer_ids.data(), {num_rows, answer_window}));
  binding.input("gumbel", tensor(gumbel.data(), {num_rows, graphs.model.vocab_size}));
  binding.input("temperature", tensor(temperature.data(), {num_rows}));
  binding.input("top_k", tensor(top_k.data(), {num_rows}));
  binding.input("top_p", tensor(top_p.data(), {num_rows}));
  binding.input("repetition_penalty", tensor(repetition_penalty.data(), {num_rows}));
}

Drawing::Drawing(const Graphs &graphs, const DrawingPlan &plan, size_t num_requests, int64_t longest_prompt)
    : graphs_(graphs), plan_(plan), num_requests_(num_requests),
      cache_(graphs, 2 * int64_t(num_requests), slots_of(graphs, longest_prompt, plan.num_rep_tokens())) {}

void Drawing::prefill(const std::vector<std::vector<int64_t>> &prompts) {
  size_t length = 0;
  std::vector<int64_t> rows;
  for (size_t row = 0; row < prompts.size(); ++row) {
    text_lengths_.push_back(int64_t(prompts[row].size()));
    length = std::max(length, prompts[row].size());
    if (!prompts[row].empty() || !cache_.takes_any_rows()) rows.push_back(int64_t(row));
  }
  if (!length) return;
  auto padded = graphs_.padded_prompt(int64_t(length));  // a graph that writes beyond its cache writes anywhere
  length = size_t(std::max(std::min(padded, cache_.num_slots() - plan_.num_rep_tokens() - 1), int64_t(length)));
  auto count = int64_t(rows.size()), tokens = int64_t(length);
  std::vector<int64_t> input_ids(rows.size() * length), zeros(rows.size());
  for (size_t line = 0; line < rows.size(); ++line)
    std::copy(prompts[size_t(rows[line])].begin(), prompts[size_t(rows[line])].end(), input_ids.begin() + long(line * length));
  TextInputs others(graphs_, count);
  std::vector<int64_t> next_ids(rows.size());
  Binding binding(graphs_.at("text_decoder"));
  binding.input("input_ids", tensor(input_ids.data(), {count, tokens}));
  binding.input("row_starts", tensor(zeros.data(), {count}));
  binding.input("past_lengths", tensor(zeros.data(), {count}));
  others.bind(binding, graphs_);
  auto write = cache_.bind_write(binding, count, tokens, true);
  binding.run();
  for (size_t line = 0; line < rows.size(); ++line) {
    int64_t row = rows[line], own = text_lengths_[size_t(row)];
    cache_.keep(write, int64_t(line), row, 0, own, 0);
    if (!cache_.takes_any_rows()) cache_.forget(row, own);  // what the graph computed for the padding
  }
}

// Passes of the representation stage over windows of all requests.
class Drawing::TokenPass {
 public:
  TokenPass(Drawing &drawing, std::vector<TokenWindow> &windows, bool guided, bool is_heard, const FillNoise &fill_noise)
      : drawing_(drawing), windows_(windows), fill_noise_(fill_noise), rows_(windows.size(), guided),
        size_(windows[0].size()), codes_(drawing.graphs_.model.rep_vocab_size), binding_(drawing.graphs_.at("rep_decoder")) {
    auto &plan = drawing.plan_;
    auto count = int64_t(windows.size()), all = int64_t(rows_.requests.size());
    size_t tokens = windows.size() * size_t(size_);
    gumbel_.resize(num_elements({int64_t(tokens), codes_})), logits.resize(gumbel_.size());
    next_rep_ids_.resize(tokens), rep_ids_.resize(tokens), positions_.resize(2 * tokens);
    zeros_.resize(size_t(all)), past_lengths_.resize(size_t(all));
    noise_from_.assign(windows.size(), -size_);
    guidance_.assign(windows.size(), float(plan.rep_guidance_scale));
    temperature_.assign(windows.size(), float(plan.temperature)), top_k_.assign(windows.size(), plan.top_k);
    binding_.input("rep_ids", tensor(rep_ids_.data(), {count, size_}));
    binding_.input("grid_positions", tensor(positions_.data(), {count, size_, 2}));
    binding_.input("row_requests", tensor(rows_.requests.data(), {all}));
    binding_.input("uncond_rows", tensor(rows_.uncond.data(), {count}));
    binding_.input("row_starts", tensor(zeros_.data(), {all}));
    binding_.input("past_lengths", tensor(past_lengths_.data(), {all}));
    binding_.input("gumbel", tensor(gumbel_.data(), {count, size_, codes_}));
    binding_.input("guidance_scale", tensor(guidance_.data(), {count}));
    binding_.input("temperature", tensor(temperature_.data(), {count}));
    binding_.input("top_k", tensor(top_k_.data(), {count}));
    binding_.output("next_rep_ids", tensor(next_rep_ids_.data(), {count, size_}));
    binding_.output("logits", tensor(logits.data(), {count, size_, codes_}), is_heard);
    write_ = drawing.cache_.bind_write(binding_, all, size_, false);
  }

  std::vector<float> logits;  // [R, W, K] of the windows that a run fed, where they are heard

  void run() {
    std::vector<int64_t> starts;
    for (size_t line = 0; line < windows_.size(); ++line) {
      auto &window = windows_[line];
      starts.push_back(window.start());
      window.fill(&rep_ids_[line * size_t(size_)], &positions_[2 * line * size_t(size_)]);
      if (!drawing_.plan_.greedy) fill_noise(line);
      past_lengths_[line] = drawing_.text_lengths_[line] + window.start();
      if (is_guided()) past_lengths_[windows_.size() + line] = window.start();
    }
    binding_.run();
    for (size_t line = 0; line < windows_.size(); ++line) {
      auto [first, end] = windows_[line].settle(&next_rep_ids_[line * size_t(size_)]);
      auto keep = [&, first = first, end = end](size_t row, int64_t slot) {
        drawing_.cache_.keep(write_, int64_t(row), int64_t(row), first - starts[line], end - starts[line], slot);
      };
      keep(line, drawing_.text_lengths_[line] + first);
      if (is_guided()) keep(windows_.size() + line, first);
    }
  }

 private:
  bool is_guided() const { return rows_.requests.size() > windows_.size(); }

  // Noise belongs to a token: what a window has in common with the last one is moved, the rest is made.
  void fill_noise(size_t line) {
    auto &window = windows_[line];
    float *noise = &gumbel_[line * size_t(size_ * codes_)];
    int64_t moved = window.start() - noise_from_[line], kept = std::max<int64_t>(size_ - moved, 0);
    std::memmove(noise, noise + std::min(moved, size_) * codes_, size_t(kept * codes_) * sizeof(float));
    for (int64_t place = kept; place < size_; ++place)
      if (window.start() + place < window.num_tokens()) fill_noise_(line, window.start() + place, noise + place * codes_);
    noise_from_[line] = window.start();
  }

  Drawing &drawing_;
  std::vector<TokenWindow> &windows_;
  const FillNoise &fill_noise_;
  Rows rows_;
  int64_t size_, codes_;
  std::vector<float> gumbel_, guidance_, temperature_;
  std::vector<int64_t> next_rep_ids_, rep_ids_, positions_, zeros_, past_lengths_, noise_from_, top_k_;
  Cache::Write write_;
  Binding binding_;
};

std::vector<std::vector<int64_t>> Drawing::draw_tokens(const FillNoise &fill_noise, const int64_t *forced,
                                                       const DrawEvents &events) {
  bool guided = plan_.rep_guidance_scale != 1;
  int64_t num_tokens = plan_.num_rep_tokens();
  auto codes = size_t(graphs_.model.rep_vocab_size);
  // Tokens are the same in windows of any size, so an engine for smaller ones is no reason to refuse.
  int64_t size = std::min(plan_.window, graphs_.at("rep_decoder").longest("rep_ids", 1));
  std::vector<TokenWindow> windows;
  for (size_t line = 0; line < num_requests_; ++line)
    windows.emplace_back(plan_.rows, plan_.columns, graphs_.model.rep_start_id, size,
                         forced ? forced + int64_t(line) * num_tokens : nullptr);
  auto run = std::make_unique<TokenPass>(*this, windows, guided, bool(events.token), fill_noise);
  // Logits of tokens that some requests know before others, until all do.
  std::vector<std::vector<float>> pending(events.token ? size_t(num_tokens) : 0);
  int64_t told = 0;
  auto all = [&](auto is) { return std::all_of(windows.begin(), windows.end(), is); };
  while (!all([](auto &window) { return window.ended(); })) {
    if (guided && all([](auto &window) { return !window.draws(); })) {  // nothing is left to guide
      guided = false;
      run.reset();
      run = std::make_unique<TokenPass>(*this, windows, guided, bool(events.token), fill_noise);
    }
    std::vector<int64_t> starts, before;
    for (auto &window : windows) starts.push_back(window.start()), before.push_back(window.num_known());
    run->run();
    if (!events.token) continue;
    for (size_t line = 0; line < windows.size(); ++line)
      for (int64_t token = before[line]; token < windows[line].num_known(); ++token) {
        auto &row = pending[size_t(token)];
        row.resize(num_requests_ * codes);
        auto place = size_t(int64_t(line) * windows[line].size() + token - starts[line]);
        std::copy_n(&run->logits[place * codes], codes, &row[line * codes]);
      }
    int64_t known = num_tokens;
    for (auto &window : windows) known = std::min(known, window.num_known());
    for (; told < known; ++told) {
      std::vector<int64_t> drawn;
      for (auto &window : windows) drawn.push_back(window.drawn()[size_t(told)]);
      events.token(told, drawn, pending[size_t(told)]);
      std::vector<float>().swap(pending[size_t(told)]);
    }
  }
  std::vector<std::vector<int64_t>> drawn;
  for (auto &window : windows) drawn.push_back(window.drawn());
  return drawn;
}

void Drawing::denoise(std::vector<float> &x_t, const DrawEvents &events) {
  auto &device = graphs_.device();
  auto count = int64_t(num_requests_);
  size_t num_bytes = x_t.size() * sizeof(float);
  std::vector<float> x_pred(x_t.size()), t(num_requests_), t_next(num_requests_);
  Mirror now(device, x_t.data(), num_bytes), preview(device, x_pred.data(), num_bytes);
  Memory next(device, num_bytes);
  now.upload();
  std::vector<float> guidance(num_requests_, float(plan_.pix_guidance_scale));
  std::vector<int64_t> zeros(num_requests_);
  std::vector<int64_t> past_lengths(cache_.lengths.begin(), cache_.lengths.begin() + count);
  std::vector<int64_t> picture = {count, 3, plan_.height, plan_.width};
  struct Run {  // with an unconditional row for each request, or without
    Rows rows;
    Binding binding;
  };
  std::unique_ptr<Run> runs[2];
  for (size_t step = 0; step + 1 < plan_.times.size(); ++step) {
    bool guided = plan_.is_guided(double(plan_.times[step]));
    auto &run = runs[guided];
    if (!run) {
      run.reset(new Run{Rows(num_requests_, guided), Binding(graphs_.at("denoiser"))});
      auto &binding = run->binding;
      auto pixels = [&](void *place) { return tensor(static_cast<float *>(place), picture); };
      binding.place_input("x_t", pixels(now.place()));
      binding.input("t", tensor(t.data(), {count}));
      binding.input("t_next", tensor(t_next.data(), {count}));
      binding.input("guidance_scale", tensor(guidance.data(), {count}));
      binding.input("row_requests", tensor(run->rows.requests.data(), {int64_t(run->rows.requests.size())}));
      binding.input("uncond_rows", tensor(run->rows.uncond.data(), {count}));
      binding.input("row_starts", tensor(zeros.data(), {count}));
      binding.input("past_lengths", tensor(past_lengths.data(), {count}));
      cache_.bind_read(binding, count);
      binding.place_output("x_next", pixels(next.data()));
      binding.place_output("x_pred", pixels(preview.place()));
    }
    std::fill(t.begin(), t.end(), plan_.times[step]);
    std::fill(t_next.begin(), t_next.end(), plan_.times[step + 1]);
    run->binding.run();
    device.copy({next.data(), num_bytes, num_bytes, now.place(), num_bytes, num_bytes, num_bytes, 1, 1});
    if (!events.step) continue;
    now.download(), preview.download();
    events.step(int64_t(step), x_t, x_pred);
  }
  now.download();
}

}  // namespace rf_internal
