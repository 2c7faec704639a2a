// rf.hpp: rf.h for C++17, header only: what is opened closes itself, and what fails raises rf::Failure, in the caller's
// program alone. Exceptions of a callback come out of the call that ran it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "rf.h"

namespace rf {

class Failure : public std::runtime_error {
 public:
  Failure(rf_status status, const char *message) : std::runtime_error(message), status(status) {}
  rf_status status;
};

inline void check(rf_status status) {
  if (status != RF_OK) throw Failure(status, rf_last_error());
}

template <auto Init, class T>
struct Initialised : T {
  Initialised() : T() { Init(this); }
};
using OpenOptions = Initialised<rf_open_options_init, rf_open_options>;
using DrawOptions = Initialised<rf_draw_options_init, rf_draw_options>;
using AskOptions = Initialised<rf_ask_options_init, rf_ask_options>;

struct Picture {
  int32_t height, width;
  std::vector<uint8_t> rgb;      // [height, width, 3]
  std::vector<int64_t> rep_ids;  // [N]
};

struct Answer {
  std::string text;
  std::vector<int64_t> ids;
  bool is_cut_off;
};

// Return false to give it up: the call raises Failure with RF_CANCELLED.
using OnEvent = std::function<bool(const rf_event &)>;
using OnWord = std::function<bool(const rf_word &)>;

namespace internal {
template <class Event>
struct Callback {
  const std::function<bool(const Event &)> &function;
  std::exception_ptr raised;

  static int call(const Event *event, void *user) noexcept {
    auto &self = *static_cast<Callback *>(user);
    try {
      return self.function(*event) ? 0 : 1;
    } catch (...) {
      self.raised = std::current_exception();
      return 1;
    }
  }
  void check(rf_status status) const {
    if (raised) std::rethrow_exception(raised);
    rf::check(status);
  }
};
}  // namespace internal

class Conversation {
 public:
  explicit Conversation(rf_pipeline *pipeline) {
    rf_conversation *made = nullptr;
    check(rf_converse(pipeline, &made));
    handle_.reset(made);
  }

  void show(const uint8_t *rgb, int32_t height, int32_t width) { check(rf_show(handle_.get(), rgb, height, width)); }
  void show(const Picture &picture) { show(picture.rgb.data(), picture.height, picture.width); }
  void say(const std::string &text) { check(rf_say(handle_.get(), text.c_str(), nullptr, 0)); }
  void rewind(size_t length) { check(rf_rewind(handle_.get(), length)); }
  size_t length() const { return rf_conversation_length(handle_.get()); }

  Answer ask(const std::string &question = "", const rf_ask_options &options = AskOptions(), const OnWord &on_word = {}) {
    std::vector<char> text(1 << 16);
    std::vector<int64_t> ids(1 << 14);
    rf_answer answer;
    rf_answer_init(&answer);
    answer.text = text.data(), answer.text_room = text.size(), answer.ids = ids.data(), answer.ids_room = ids.size();
    internal::Callback<rf_word> callback{on_word, nullptr};
    callback.check(rf_ask(handle_.get(), question.c_str(), &options, on_word ? callback.call : nullptr, &callback, &answer));
    ids.resize(std::min(ids.size(), answer.ids_room));
    return {text.data(), std::move(ids), answer.is_cut_off != 0};
  }

 private:
  struct Close {
    void operator()(rf_conversation *each) const { rf_conversation_close(each); }
  };
  std::unique_ptr<rf_conversation, Close> handle_;
};

class Pipeline {
 public:
  explicit Pipeline(const std::string &bundle, const rf_open_options &options = OpenOptions()) {
    rf_pipeline *made = nullptr;
    check(rf_open(bundle.c_str(), &options, &made));
    handle_.reset(made);
  }

  std::vector<Picture> draw(const std::vector<std::string> &prompts, const rf_draw_options &options = DrawOptions(),
                            const OnEvent &on_event = {}) const {
    rf_size size;
    check(rf_measure(handle_.get(), &options, &size));
    size_t num_pixels = 3 * size_t(size.height) * size_t(size.width), num_tokens = size_t(size.num_rep_tokens);
    std::vector<uint8_t> rgb(prompts.size() * num_pixels);
    std::vector<int64_t> ids(prompts.size() * num_tokens);
    std::vector<rf_prompt> texts;
    for (auto &prompt : prompts) texts.push_back({prompt.c_str(), nullptr, 0});
    rf_pictures out;
    rf_pictures_init(&out);
    out.rgb = rgb.data(), out.rgb_room = rgb.size(), out.rep_ids = ids.data(), out.rep_ids_room = ids.size();
    internal::Callback<rf_event> callback{on_event, nullptr};
    callback.check(rf_draw(handle_.get(), texts.data(), texts.size(), &options, on_event ? callback.call : nullptr,
                           &callback, &out));
    std::vector<Picture> pictures;
    for (size_t i = 0; i < prompts.size(); ++i)
      pictures.push_back({size.height, size.width,
                          {rgb.begin() + long(i * num_pixels), rgb.begin() + long((i + 1) * num_pixels)},
                          {ids.begin() + long(i * num_tokens), ids.begin() + long((i + 1) * num_tokens)}});
    return pictures;
  }

  Picture draw(const std::string &prompt, const rf_draw_options &options = DrawOptions(), const OnEvent &on_event = {}) const {
    return std::move(draw(std::vector<std::string>{prompt}, options, on_event)[0]);
  }

  Conversation converse() const { return Conversation(handle_.get()); }

  std::string info() const {  // JSON
    size_t room = 0;
    check(rf_info(handle_.get(), nullptr, &room));
    std::vector<char> text(room);
    check(rf_info(handle_.get(), text.data(), &room));
    return text.data();
  }

 private:
  struct Close {
    void operator()(rf_pipeline *each) const { rf_close(each); }
  };
  std::unique_ptr<rf_pipeline, Close> handle_;
};

}  // namespace rf
