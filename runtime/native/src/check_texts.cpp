#include "check_texts.hpp"

#include <algorithm>

#include "error.hpp"

namespace rf_internal {
namespace {

bool is_id(int64_t id, const Json &other) { return other.is_whole() && other.whole() == id; }

}  // namespace

void replay_check_texts(const Tokenizer &tokenizer, const Json &content, const std::string &where) {
  auto texts = content["texts"].list();
  if (!texts) throw Error(where + " has no list 'texts'. Export the bundle again.", RF_DAMAGED);
  for (auto &each : *texts) {
    auto text = each["text"].text();
    auto ids = each["ids"].list();
    if (!text || !(ids || each["ids"].is_null()))
      throw Error(where + " has a text without ids. Export the bundle again.", RF_DAMAGED);
    auto found = tokenizer.try_encode(*text);
    bool is_same = found && ids ? std::equal(found->begin(), found->end(), ids->begin(), ids->end(), is_id) : !found && !ids;
    if (!is_same)
      throw Error("This library reads the bundle's tokenizer otherwise than the bundle was made with: " + quoted(*text) +
                      " has other ids, see " + where + ". Give token ids in place of texts.",
                  RF_UNSUPPORTED);
  }
}

}  // namespace rf_internal
