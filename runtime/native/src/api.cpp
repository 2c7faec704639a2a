// The C API: structs in, results out, and no exception beyond this file. Knows nothing of how anything is done.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "conversation.hpp"
#include "error.hpp"
#include "json.hpp"
#include "pipeline.hpp"
#include "rf.h"

using namespace rf_internal;

struct rf_pipeline {
  Pipeline pipeline;
};
struct rf_conversation {
  Conversation conversation;
};

namespace {

thread_local std::string last_error;

template <class Body>
rf_status guarded(Body &&body) noexcept {
  try {
    try {
      body();
      return RF_OK;
    } catch (const Error &error) {
      last_error = error.what();
      return error.status;
    } catch (const std::bad_alloc &) {
      last_error = "There is not enough memory. Draw fewer or smaller pictures at once, or free some.";
      return RF_NO_MEMORY;
    } catch (const std::length_error &) {
      last_error = "There is not enough memory. Draw fewer or smaller pictures at once, or free some.";
      return RF_NO_MEMORY;
    } catch (const std::exception &error) {
      last_error = std::string("This is a fault of rf-export, please report it: ") + error.what() + ".";
      return RF_FAULT;
    } catch (...) {  // of a callback
      last_error = "A callback raised an exception, which it must not. Catch it there.";
      return RF_FAULT;
    }
  } catch (...) {  // no memory for the message
    return RF_NO_MEMORY;
  }
}

template <class T>
const T &given(const T *value, const char *what) {
  if (!value) throw Error(std::string(what) + " is NULL. Give one.");
  return *value;
}

// A struct of a caller whose header may be older or newer: what it does not have is the default.
template <class T>
T taken(const T *options, void (*init)(T *), const char *what) {
  T whole;
  init(&whole);
  if (!options) return whole;
  if (options->size < sizeof options->size || options->size > 4096)
    throw Error(std::string(what) + " has no size: fill it in with its init function.");
  std::memcpy(static_cast<void *>(&whole), options, std::min<size_t>(options->size, sizeof whole));
  return whole;
}

std::string text_or(const char *text, const char *otherwise) { return text ? text : otherwise; }

void copy_text(const std::string &text, char *out, size_t &room) {
  if (out && room) {
    size_t size = std::min(room - 1, text.size());
    std::memcpy(out, text.data(), size);
    out[size] = 0;
  }
  room = text.size() + 1;
}

void copy_ids(const std::vector<int64_t> &ids, int64_t *out, size_t &room) {
  if (out) std::copy_n(ids.begin(), std::min(room, ids.size()), out);
  room = ids.size();
}

std::optional<int64_t> whole(int32_t value) { return value ? std::optional<int64_t>(value) : std::nullopt; }
std::optional<double> real(double value) { return std::isnan(value) ? std::nullopt : std::optional<double>(value); }

DrawOptions draw_options(const rf_draw_options &o) {
  DrawOptions options;
  options.height = whole(o.height), options.width = whole(o.width), options.top_k = whole(o.top_k);
  options.num_steps = whole(o.num_steps), options.window = whole(o.window), options.shift = real(o.shift);
  options.rep_guidance_scale = real(o.rep_guidance_scale), options.pix_guidance_scale = real(o.pix_guidance_scale);
  options.temperature = real(o.temperature), options.plan = text_or(o.plan, "");
  if (o.times) options.times = std::vector<double>(o.times, o.times + o.num_times);
  if (o.guided) options.guided = std::vector<double>(o.guided, o.guided + 2);
  return options;
}

Prompt prompt_of(const char *text, const int64_t *ids, size_t num_ids) {
  Prompt prompt{text_or(text, ""), std::nullopt};
  if (ids) prompt.ids = std::vector<int64_t>(ids, ids + num_ids);
  return prompt;
}

template <class T>
void require_room(const T *out, size_t room, size_t needed, const char *what) {
  if (out && room < needed)
    throw Error(std::string(what) + " has room for " + std::to_string(room) + " and " + std::to_string(needed) +
                " are needed. rf_measure tells the sizes.");
}

[[noreturn]] void cancel() {
  throw Error("The drawing was cancelled before its picture was there. Submit it again.", RF_CANCELLED);
}

}  // namespace

extern "C" {

const char *rf_last_error(void) { return last_error.c_str(); }
uint32_t rf_api_version(void) { return RF_API_VERSION; }
const char *rf_version(void) { return RF_VERSION; }

void rf_open_options_init(rf_open_options *options) {
  *options = rf_open_options{};
  options->size = sizeof *options;
}

void rf_draw_options_init(rf_draw_options *options) {
  *options = rf_draw_options{};
  options->size = sizeof *options;
  options->shift = options->rep_guidance_scale = options->pix_guidance_scale = options->temperature = NAN;
}

void rf_pictures_init(rf_pictures *pictures) {
  *pictures = rf_pictures{};
  pictures->size = sizeof *pictures;
}

void rf_ask_options_init(rf_ask_options *options) {
  *options = rf_ask_options{};
  options->size = sizeof *options;
  options->temperature = options->top_p = options->repetition_penalty = NAN;
}

void rf_answer_init(rf_answer *answer) {
  *answer = rf_answer{};
  answer->size = sizeof *answer;
}

rf_status rf_open(const char *bundle, const rf_open_options *options, rf_pipeline **pipeline) {
  return guarded([&] {
    given(bundle, "The path of the bundle"), given(pipeline, "The place for the pipeline");
    *pipeline = nullptr;
    auto o = taken(options, rf_open_options_init, "rf_open_options");
    OpenOptions open;
    auto choose = [](const char *name, const std::string &value, const std::vector<const char *> &choices) {
      std::string all;
      for (auto each : choices) {
        if (value == each) return value;
        all += (all.empty() ? "" : ", ") + std::string(each);
      }
      throw Error(std::string(name) + " must be one of " + all + ", got " + quoted(value) + ".");
    };
    open.variant = {choose("precision", text_or(o.precision, "fp32"), kPrecisions),
                    choose("dialect", text_or(o.dialect, "classic"), kDialects)};
    std::string verify = choose("verify", text_or(o.verify, "auto"), {"auto", "size", "hash"});
    open.verify = verify == "auto" ? Verify::automatic : verify == "size" ? Verify::size : Verify::hash;
    open.engine = text_or(o.engine, "auto"), open.library = text_or(o.library, "");
    open.backend = choose("backend", text_or(o.backend, "ort"), {"ort", "tensorrt", "tensorrt-rtx"});
    open.backend_library = text_or(o.backend_library, "");
    open.provider = {text_or(o.provider, ""), text_or(o.provider_library, "")};
    if (o.num_threads < 0) throw Error("num_threads must be >= 1, got " + std::to_string(o.num_threads) + ".");
    open.threads = {o.num_threads, !o.no_spinning}, open.allow_unverified = o.allow_unverified != 0;
    if (o.warn) open.warn = [&](const std::string &message) { o.warn(message.c_str(), o.user); };
    *pipeline = new rf_pipeline{Pipeline(bundle, open)};
  });
}

void rf_close(rf_pipeline *pipeline) { delete pipeline; }

rf_status rf_info(const rf_pipeline *pipeline, char *json, size_t *room) {
  return guarded([&] {
    given(room, "The room");
    copy_text(given(pipeline, "The pipeline").pipeline.info(), json, *room);
  });
}

rf_status rf_tokenize(const rf_pipeline *pipeline, const char *text, int64_t *ids, size_t *num) {
  return guarded([&] {
    given(num, "The number of ids");
    auto &p = given(pipeline, "The pipeline").pipeline;
    copy_ids(p.tokenizer().encode(text_or(text, ""), p.manifest().model.max_positions, "text"), ids, *num);
  });
}

rf_status rf_detokenize(const rf_pipeline *pipeline, const int64_t *ids, size_t num, char *text, size_t *room) {
  return guarded([&] {
    given(room, "The room");
    auto &p = given(pipeline, "The pipeline").pipeline;
    if (num) given(ids, "The ids");
    copy_text(p.tokenizer().decode({ids, ids + num}), text, *room);
  });
}

rf_status rf_measure(const rf_pipeline *pipeline, const rf_draw_options *options, rf_size *size) {
  return guarded([&] {
    given(size, "The place for the size");
    auto &p = given(pipeline, "The pipeline").pipeline;
    auto choice = draw_options(taken(options, rf_draw_options_init, "rf_draw_options"));
    choice.check();
    auto plan = plan_drawing(choice, p.manifest(), p.window());
    *size = {int32_t(plan.height), int32_t(plan.width), int32_t(plan.num_rep_tokens()), int32_t(plan.num_steps()),
             int32_t(plan.window)};
  });
}

rf_status rf_draw(rf_pipeline *pipeline, const rf_prompt *prompts, size_t num_prompts, const rf_draw_options *options,
                  rf_draw_callback callback, void *user, const rf_pictures *pictures) {
  return guarded([&] {
    auto &p = given(pipeline, "The pipeline").pipeline;
    if (num_prompts) given(prompts, "The list of prompts");
    auto o = taken(options, rf_draw_options_init, "rf_draw_options");
    auto out = taken(pictures, rf_pictures_init, "rf_pictures");
    std::vector<Prompt> texts;
    for (size_t i = 0; i < num_prompts; ++i) texts.push_back(prompt_of(prompts[i].text, prompts[i].ids, prompts[i].num_ids));
    auto request = check_request(p, texts, o.seed, draw_options(o), o.forced_rep_ids);
    auto &plan = request.plan;
    size_t num_pixels = 3 * size_t(plan.height) * size_t(plan.width);
    require_room(out.rgb, out.rgb_room, num_prompts * num_pixels, "rgb");
    require_room(out.pixels, out.pixels_room, num_prompts * num_pixels, "pixels");
    require_room(out.rep_ids, out.rep_ids_room, num_prompts * size_t(plan.num_rep_tokens()), "rep_ids");
    DrawEvents events;
    rf_event event{};
    event.size = sizeof event, event.num_pictures = int32_t(num_prompts);
    event.height = int32_t(plan.height), event.width = int32_t(plan.width);
    if (callback) {
      events.token = [&](int64_t step, const std::vector<int64_t> &drawn, const std::vector<float> &logits) {
        event.kind = RF_TOKEN, event.step = int32_t(step), event.num_steps = int32_t(plan.num_rep_tokens());
        event.rep_ids = drawn.data(), event.logits = logits.data(), event.num_logits = logits.size() / num_prompts;
        if (callback(&event, user)) cancel();
      };
      events.step = [&](int64_t step, const std::vector<float> &x_t, const std::vector<float> &x_pred) {
        event.kind = RF_STEP, event.step = int32_t(step), event.num_steps = int32_t(plan.num_steps());
        event.rep_ids = nullptr, event.logits = nullptr, event.num_logits = 0;
        event.t = plan.times[size_t(step)], event.t_next = plan.times[size_t(step) + 1];
        event.x_next = x_t.data(), event.x_pred = x_pred.data();
        if (callback(&event, user)) cancel();
      };
    }
    auto drawn = draw(p, request, events);
    if (out.pixels) std::copy(drawn.pixels.begin(), drawn.pixels.end(), out.pixels);
    if (out.rep_ids) std::copy(drawn.rep_ids.begin(), drawn.rep_ids.end(), out.rep_ids);
    for (size_t i = 0; out.rgb && i < num_prompts; ++i)
      to_rgb(&drawn.pixels[i * num_pixels], plan.height, plan.width, out.rgb + i * num_pixels);
  });
}

void rf_to_rgb(const float *pixels, int32_t height, int32_t width, uint8_t *rgb) { to_rgb(pixels, height, width, rgb); }

rf_status rf_converse(rf_pipeline *pipeline, rf_conversation **conversation) {
  return guarded([&] {
    given(conversation, "The place for the conversation");
    *conversation = nullptr;
    *conversation = new rf_conversation{Conversation(given(pipeline, "The pipeline").pipeline)};
  });
}

void rf_conversation_close(rf_conversation *conversation) { delete conversation; }

rf_status rf_show(rf_conversation *conversation, const uint8_t *rgb, int32_t height, int32_t width) {
  return guarded([&] {
    given(conversation, "The conversation"), given(rgb, "The picture");
    conversation->conversation.show(rgb, height, width);
  });
}

rf_status rf_say(rf_conversation *conversation, const char *text, const int64_t *ids, size_t num_ids) {
  return guarded([&] {
    given(conversation, "The conversation");
    conversation->conversation.say(prompt_of(text, ids, num_ids));
  });
}

rf_status rf_ask(rf_conversation *conversation, const char *question, const rf_ask_options *options,
                 rf_ask_callback callback, void *user, rf_answer *answer) {
  return guarded([&] {
    given(conversation, "The conversation");
    auto o = taken(options, rf_ask_options_init, "rf_ask_options");
    Question asked;
    asked.prompt = prompt_of(question, o.ids, o.num_ids);
    asked.seed = o.seed, asked.forget = o.forget != 0;
    asked.options.max_tokens = whole(o.max_tokens), asked.options.top_k = whole(o.top_k);
    asked.options.temperature = real(o.temperature).value_or(0.0);
    asked.options.top_p = real(o.top_p).value_or(1.0);
    asked.options.repetition_penalty = real(o.repetition_penalty).value_or(1.0);
    if (o.forced_ids) {
      if (!o.num_forced_ids) throw Error("token_ids must be at least one id that the model knows.");
      asked.forced.assign(o.forced_ids, o.forced_ids + o.num_forced_ids);
    }
    Conversation::OnWord on_word;
    if (callback)
      on_word = [&](int64_t step, int64_t max_tokens, int64_t id, const std::string &text, const std::vector<float> &logits) {
        rf_word word{};
        word.size = sizeof word, word.step = int32_t(step), word.max_tokens = int32_t(max_tokens), word.token_id = id;
        word.text = text.c_str(), word.logits = logits.data(), word.num_logits = logits.size();
        if (callback(&word, user))
          throw Error("The answer was given up before its end. The conversation is as it was before the question.",
                      RF_CANCELLED);
      };
    auto found = conversation->conversation.ask(asked, on_word);
    if (!answer) return;
    auto out = taken(answer, rf_answer_init, "rf_answer");
    copy_text(found.text, out.text, out.text_room);
    copy_ids(found.ids, out.ids, out.ids_room);
    out.is_cut_off = found.is_cut_off;
    std::memcpy(static_cast<void *>(answer), &out, std::min<size_t>(answer->size, sizeof out));
  });
}

size_t rf_conversation_length(const rf_conversation *conversation) {
  return conversation ? conversation->conversation.length() : 0;
}

size_t rf_conversation_read(const rf_conversation *conversation) {
  return conversation ? conversation->conversation.num_read() : 0;
}

rf_status rf_rewind(rf_conversation *conversation, size_t length) {
  return guarded([&] {
    given(conversation, "The conversation");
    conversation->conversation.rewind(length);
  });
}

}  // extern "C"
