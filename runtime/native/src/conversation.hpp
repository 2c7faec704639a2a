// A conversation about pictures: images and texts in any order, questions, answers, and the way back; see
// runtime/understanding/. Knows nothing of libraries that run graphs.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "pipeline.hpp"

namespace rf_internal {

struct Question {
  Prompt prompt;
  AnswerOptions options;
  uint64_t seed = 0;
  bool forget = false;
  std::vector<int64_t> forced;
};

struct Answer {
  std::string text;
  std::vector<int64_t> ids;  // the one that ends it too
  bool is_cut_off;
};

class Conversation {
 public:
  explicit Conversation(const Pipeline &pipeline);

  void show(const uint8_t *rgb, int64_t height, int64_t width);
  void say(const Prompt &text);
  // Called for every token; raises to give the answer up.
  using OnWord = std::function<void(int64_t step, int64_t max_tokens, int64_t id, const std::string &text,
                                    const std::vector<float> &logits)>;
  Answer ask(const Question &question, const OnWord &on_word);
  void rewind(size_t length);
  size_t length() const { return ids_.size(); }
  size_t num_read() const { return size_t(cache_->lengths[0]); }

 private:
  struct Feature {  // [d] of an image token, among those of its picture
    std::shared_ptr<const Memory> picture;
    const uint8_t *place;
  };
  std::vector<int64_t> encode(const Prompt &text, const char *what) const;
  std::vector<int64_t> draw_answer(const Question &question, const AnswerPlan &plan, const OnWord &on_word);
  std::string words(const std::vector<int64_t> &drawn) const;
  void reserve(int64_t num_tokens);
  void require_room(int64_t num_tokens) { reserve(int64_t(ids_.size()) - cache_->lengths[0] + num_tokens); }
  void go_back(size_t length);
  void refuse_while_answering() const;

  const Pipeline &pipeline_;
  const Graphs &graphs_;
  std::unique_ptr<Cache> cache_;          // one row
  std::vector<int64_t> ids_;              // V + f for image token f
  std::vector<Feature> features_;         // kept so that the way back can go anywhere
  bool is_answering_ = false;
};

}  // namespace rf_internal
