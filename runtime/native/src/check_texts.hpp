// Texts whose ids, or whose refusal, a bundle knows: check_texts.json, see verification/texts.py. Knows nothing of how
// texts are read.
#pragma once

#include <string>

#include "json.hpp"
#include "tokenizer.hpp"

namespace rf_internal {

// Raises Error where the content of a file `where` is no such list (damaged), or where the tokenizer reads one of its texts
// otherwise (unsupported).
void replay_check_texts(const Tokenizer &tokenizer, const Json &content, const std::string &where);

}  // namespace rf_internal
