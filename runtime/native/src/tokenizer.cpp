#include "tokenizer.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <queue>

#include "close_words.hpp"
#include "error.hpp"
#include "unicode.hpp"
#include "utf8.hpp"

namespace rf_internal {
namespace {

constexpr uint64_t kMaxBytes = 64u << 20;
constexpr size_t kMaxCharacters = 100'000, kNamed = 8, kMostWords = 2000, kLongestWord = 40;
constexpr const char *kSigns = " \t\n,.;:!?\"'()";
constexpr const char *kRemedy = "Export the bundle again.";

const char *const kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const char *const kQwen =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const char *const kLlama =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

[[noreturn]] void unsupported(const std::string &what) {
  throw Error("The bundle's tokenizer has " + what + ", which this library does not read. Give token ids in place of "
              "texts: the package tokenizers makes them.",
              RF_UNSUPPORTED);
}

bool is_id(const Json &id) { return id.is_whole() && id.whole() >= 0; }

std::string kind_of(const Json &part) { return part["type"].text() ? *part["type"].text() : part.is_null() ? "" : "another"; }

bool is_blank(uint32_t code) { return is_space(code) || (code >= 0x1C && code <= 0x1F); }  // as Python's isspace
bool is_alnum(uint32_t code) { return is_letter(code) || is_number(code); }

std::string to_text(const std::vector<uint32_t> &codes, size_t first = 0, size_t end = SIZE_MAX) {
  std::string text;
  for (size_t i = first; i < std::min(end, codes.size()); ++i) append_utf8(text, codes[i]);
  return text;
}

std::string cut(const std::string &text) {  // for a message
  auto codes = code_points(text);
  return codes.size() <= 80 ? text : to_text(codes, 0, 77) + "...";
}

void unique(std::vector<std::string> &parts) {
  std::unordered_set<std::string> seen;
  parts.erase(std::remove_if(parts.begin(), parts.end(), [&](auto &each) { return !seen.insert(each).second; }), parts.end());
}

std::string listed(std::vector<std::string> parts) {
  unique(parts);
  std::string text;
  for (size_t i = 0; i < std::min(parts.size(), kNamed); ++i) text += (i ? ", " : "") + quoted(cut(parts[i]));
  return parts.size() > kNamed ? text + " and " + std::to_string(parts.size() - kNamed) + " more" : text;
}

std::string stripped(const std::string &text) {
  size_t first = text.find_first_not_of(kSigns), last = text.find_last_not_of(kSigns);
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

bool looks_like_control(const std::string &token) {  // [PAD], <s>, <|end|>, but not <0x0A>
  if (token.size() < 3) return false;
  char first = token.front(), last = token.back();
  if (!(first == '[' && last == ']') && !(first == '<' && last == '>')) return false;
  for (uint32_t code : code_points(token.substr(1, token.size() - 2)))
    if (is_blank(code) || code == uint32_t(first) || code == uint32_t(last)) return false;
  auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'); };
  bool is_byte = token.size() == 6 && token.compare(0, 3, "<0x") == 0 && is_digit(token[3]) && is_digit(token[4]);
  return !is_byte;
}

// The letters that stand for bytes in byte-level vocabularies, and back.
const std::array<uint32_t, 256> &byte_letters() {
  static const auto letters = [] {
    std::array<uint32_t, 256> made;
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      bool is_plain = (byte >= 0x21 && byte < 0x7F) || (byte >= 0xA1 && byte < 0xAD) || byte >= 0xAE;
      made[byte] = is_plain ? byte : next++;
    }
    return made;
  }();
  return letters;
}

std::string spelt_in_letters(const std::string &bytes) {
  std::string text;
  for (char byte : bytes) append_utf8(text, byte_letters()[uint8_t(byte)]);
  return text;
}

std::string bytes_of(const std::string &token) {
  static const auto bytes = [] {
    std::unordered_map<uint32_t, char> made;
    for (size_t byte = 0; byte < 256; ++byte) made[byte_letters()[byte]] = char(byte);
    return made;
  }();
  std::string text;
  for (uint32_t code : code_points(token)) {
    auto found = bytes.find(code);
    if (found == bytes.end()) return token;
    text += found->second;
  }
  return text;
}

std::string with_replacements(const std::string &bytes) {  // for each longest start of a character that is none
  std::string text;
  for (size_t at = 0; at < bytes.size();) {
    size_t start = at;
    uint32_t code = next_utf8(bytes, at);
    if (code != 0xFFFFFFFF && !is_surrogate(code)) {
      text.append(bytes, start, at - start);
      continue;
    }
    text += "\xEF\xBF\xBD";
    uint8_t first = uint8_t(bytes[start]);
    size_t room = first < 0xC2 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : first < 0xF5 ? 3 : 0;
    uint8_t least = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80, most = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    for (at = start + 1; room && at < bytes.size() && uint8_t(bytes[at]) >= least && uint8_t(bytes[at]) <= most; --room)
      ++at, least = 0x80, most = 0xBF;
  }
  return text;
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::read(const std::string &path, int64_t vocab_size,
                                           const std::vector<int64_t> &control_ids) {
  return read(read_json(path, kMaxBytes), path, vocab_size, control_ids);
}

std::unique_ptr<Tokenizer> Tokenizer::read(const Json &j, const std::string &where, int64_t vocab_size,
                                           const std::vector<int64_t> &control_ids) {
  std::unique_ptr<Tokenizer> made(new Tokenizer);
  auto &model = j["model"];
  std::string kind = kind_of(model);
  if (!model["vocab"].object()) unsupported("a model of the kind " + quoted(kind));
  if (kind == "WordLevel") made->read_words(j);
  else if (kind == "BPE") made->read_bpe(j);
  else unsupported("a model of the kind " + quoted(kind));
  made->read_added(j);
  int64_t largest = 0;
  for (auto &[word, id] : made->ids_) largest = std::max(largest, id), made->words_.emplace(id, word);
  if (largest >= vocab_size)
    throw Error(where + " makes ids up to " + std::to_string(largest) + ", and the model knows " +
                std::to_string(vocab_size) + ". The tokenizer is not the model's. " + kRemedy);
  if (auto name = model["unk_token"].text())
    if (auto found = made->ids_.find(*name); found != made->ids_.end()) made->unknown_ = found->second;
  made->control_ = made->special_;
  if (made->unknown_ >= 0) made->control_.insert(made->unknown_);
  std::vector<std::pair<int64_t, std::string>> words;
  for (auto &[word, id] : made->ids_) {
    bool is_named = std::find(control_ids.begin(), control_ids.end(), id) != control_ids.end();
    bool is_added = std::any_of(made->added_.begin(), made->added_.end(), [id = id](auto &each) { return each.second == id; });
    if (looks_like_control(word) && !is_added && (!made->is_byte_level_ || is_named)) made->control_.insert(id);
    words.emplace_back(id, word);
  }
  std::sort(words.begin(), words.end());
  for (auto &[id, word] : words) {
    if (made->control_.count(id)) continue;
    bool is_start = word.rfind("\xC4\xA0", 0) == 0;  // what begins a word in byte-level vocabularies
    if (!made->is_byte_level_) made->vocabulary_.push_back(word);
    else if (is_start) made->vocabulary_.push_back(with_replacements(bytes_of(word)).substr(1));
  }
  return made;
}

void Tokenizer::read_words(const Json &j) {
  std::string normalizer = kind_of(j["normalizer"]), cutter = kind_of(j["pre_tokenizer"]);
  if (!normalizer.empty() && normalizer != "Lowercase") unsupported("a normalizer of the kind " + quoted(normalizer));
  if (cutter != "Whitespace" && cutter != "WhitespaceSplit") unsupported("a pre-tokenizer of the kind " + quoted(cutter));
  if (!j["post_processor"].is_null()) unsupported("a post-processor of the kind " + quoted(kind_of(j["post_processor"])));
  if (!j["decoder"].is_null()) unsupported("a decoder of the kind " + quoted(kind_of(j["decoder"])));
  is_lowercase_ = !normalizer.empty(), splits_at_blanks_ = cutter == "WhitespaceSplit";
  for (auto &[word, id] : *j["model"]["vocab"].object()) {
    if (!is_id(id)) unsupported("ids that are no whole numbers");
    ids_[word] = id.whole();
  }
}

void Tokenizer::read_bpe(const Json &j) {
  const Json &model = j["model"];
  for (const char *option : {"unk_token", "continuing_subword_prefix", "end_of_word_suffix"})
    if (model[option].is_true()) unsupported("the option " + quoted(option));
  if (model["byte_fallback"].is_true()) unsupported("the option 'byte_fallback'");
  std::string normalizer = kind_of(j["normalizer"]);
  if (!normalizer.empty() && normalizer != "NFC") unsupported("a normalizer of the kind " + quoted(normalizer));
  auto &post = j["post_processor"], &decoder = j["decoder"];
  if (!post.is_null() && kind_of(post) != "ByteLevel") unsupported("a post-processor of the kind " + quoted(kind_of(post)));
  if (kind_of(decoder) != "ByteLevel") unsupported("a decoder of the kind " + quoted(kind_of(decoder)));
  is_byte_level_ = true, is_nfc_ = normalizer == "NFC", ignore_merges_ = model["ignore_merges"].is_true();
  const Json *cutter = &j["pre_tokenizer"];
  auto is_off = [](const Json &value) { return value.truth() && !*value.truth(); };
  if (kind_of(*cutter) == "Sequence") {
    auto parts = (*cutter)["pretokenizers"].list();
    if (!parts || parts->size() != 2 || kind_of((*parts)[0]) != "Split" || kind_of((*parts)[1]) != "ByteLevel" ||
        !is_off((*parts)[1]["use_regex"]) || !is_off((*parts)[1]["add_prefix_space"]))
      unsupported("a pre-tokenizer of other parts than Split and ByteLevel");
    auto &split = (*parts)[0];
    auto pattern = split["pattern"]["Regex"].text();
    bool is_known = pattern && split["behavior"].text() && *split["behavior"].text() == "Isolated" && is_off(split["invert"]);
    if (is_known && *pattern == kQwen) max_digits_ = 1;
    else if (is_known && *pattern == kLlama) max_digits_ = 3;
    else if (!is_known || *pattern != kGpt2) unsupported("a pre-tokenizer with another pattern than GPT-2's, Llama 3's and Qwen's");
  } else if (kind_of(*cutter) == "ByteLevel" && !is_off((*cutter)["use_regex"])) {
    add_prefix_space_ = (*cutter)["add_prefix_space"].is_true();
  } else {
    unsupported("a pre-tokenizer of the kind " + quoted(kind_of(*cutter)));
  }
  for (auto &[word, id] : *model["vocab"].object()) {
    if (!is_id(id)) unsupported("ids that are no whole numbers");
    ids_[word] = id.whole();
  }
  auto merges = model["merges"].list();
  if (!merges) unsupported("no list of merges");
  for (auto &each : *merges) {
    std::string left, right;
    if (auto text = each.text()) {
      size_t blank = text->find(' ');
      if (blank == std::string::npos || text->find(' ', blank + 1) != std::string::npos) unsupported("a merge that is no pair");
      left = text->substr(0, blank), right = text->substr(blank + 1);
    } else if (auto pair = each.list(); pair && pair->size() == 2 && (*pair)[0].text() && (*pair)[1].text()) {
      left = *(*pair)[0].text(), right = *(*pair)[1].text();
    } else {
      unsupported("a merge that is no pair");
    }
    auto whole = ids_.find(left + right);
    if (whole == ids_.end() || !ids_.count(left) || !ids_.count(right)) unsupported("a merge of tokens that it does not have");
    merges_[left + " " + right] = {int64_t(merges_.size()), whole->second};
  }
}

void Tokenizer::read_added(const Json &j) {
  auto tokens = j["added_tokens"].list();
  for (size_t i = 0; tokens && i < tokens->size(); ++i) {
    auto &token = (*tokens)[i];
    auto content = token["content"].text();
    if (!content || content->empty() || !is_id(token["id"])) unsupported("an added token without a text or an id");
    int64_t id = token["id"].whole();
    ids_[*content] = id;
    if (token["special"].is_true()) {  // read as plain text: only a template writes them
      special_.insert(id);
      continue;
    }
    for (const char *flag : {"single_word", "lstrip", "rstrip"})
      if (token[flag].is_true()) unsupported("an added token with the flag " + quoted(flag));
    bool is_ascii = std::all_of(content->begin(), content->end(), [](char c) { return uint8_t(c) < 128; });
    if (!is_byte_level_ || !is_ascii) unsupported("an added token " + quoted(*content) + " that is no special one");
    added_.emplace_back(*content, id);
  }
}

std::vector<Tokenizer::Piece> Tokenizer::split_added(const std::string &text) const {
  std::vector<Piece> found;
  size_t start = 0;
  for (size_t at = 0; at < text.size() && !added_.empty();) {
    const std::pair<std::string, int64_t> *longest = nullptr;
    for (auto &each : added_)
      if (text.compare(at, each.first.size(), each.first) == 0 && (!longest || each.first.size() > longest->first.size()))
        longest = &each;
    if (!longest) {
      ++at;
      continue;
    }
    if (at > start) found.push_back({text.substr(start, at - start)});
    found.push_back({longest->first, longest->second});
    start = at += longest->first.size();
  }
  if (start < text.size()) found.push_back({text.substr(start)});
  return found;
}

std::vector<std::string> Tokenizer::pieces(const std::string &text) const {
  auto codes = code_points(text);
  std::vector<std::string> found;
  size_t size = codes.size(), at = 0;
  using Is = bool (*)(uint32_t);
  auto run = [&](size_t from, Is is) {
    while (from < size && is(codes[from])) ++from;
    return from;
  };
  auto keep = [&](size_t end) { found.push_back(to_text(codes, at, end)), at = end; };
  Is is_line = [](uint32_t code) { return code == '\r' || code == '\n'; };
  Is is_other = [](uint32_t code) { return !is_space(code) && !is_letter(code) && !is_number(code); };
  if (!is_byte_level_) {
    while (at < size) {
      if (is_space(codes[at])) ++at;
      else if (splits_at_blanks_) keep(run(at, [](uint32_t code) { return !is_space(code); }));
      else if (is_word(codes[at])) keep(run(at, is_word));
      else keep(run(at, [](uint32_t code) { return !is_space(code) && !is_word(code); }));
    }
    return found;
  }
  while (at < size) {
    uint32_t first = codes[at];
    if (first == '\'') {  // endings, in any case but with GPT-2's pattern
      bool is_found = false;
      for (const char *ending : {"s", "t", "re", "ve", "m", "ll", "d"}) {
        size_t length = std::char_traits<char>::length(ending), i = 0;
        for (; i < length && at + 1 + i < size; ++i) {
          uint32_t code = codes[at + 1 + i];
          if (max_digits_ && code == 0x17F) code = 's';  // the long s, whose capital is S
          if (max_digits_ && code < 128) code = uint32_t(std::tolower(int(code)));
          if (code != uint32_t(ending[i])) break;
        }
        if (i < length) continue;
        keep(at + 1 + length), is_found = true;
        break;
      }
      if (is_found) continue;
    }
    if (max_digits_) {
      bool may_lead = !is_line(first) && !is_letter(first) && !is_number(first);
      size_t start = may_lead && at + 1 < size && is_letter(codes[at + 1]) ? at + 1 : at;
      if (is_letter(codes[start])) {
        keep(run(start, is_letter));
        continue;
      }
      if (is_number(first)) {
        keep(std::min(run(at, is_number), at + size_t(max_digits_)));
        continue;
      }
    } else {
      size_t start = at + (first == ' ' && at + 1 < size);
      if (Is is = is_letter(codes[start]) ? is_letter : is_number(codes[start]) ? is_number : nullptr) {
        keep(run(start, is));
        continue;
      }
    }
    size_t start = at + (first == ' ' && at + 1 < size);
    if (is_other(codes[start])) {
      size_t end = run(start, is_other);
      keep(max_digits_ ? run(end, is_line) : end);
      continue;
    }
    size_t end = run(at, is_space);
    if (max_digits_) {  // up to the last end of a line
      size_t last = end;
      while (last > at && !is_line(codes[last - 1])) --last;
      if (last > at) {
        keep(last);
        continue;
      }
    }
    keep(end < size && end - at > 1 ? end - 1 : end);  // the last blank belongs to the word behind it
  }
  return found;
}

// The pair of the lowest rank first, the leftmost of these, until there is none.
void Tokenizer::merge(const std::string &piece, std::vector<int64_t> &ids) const {
  struct Part {
    std::string text;
    size_t before, after;
  };
  if (ignore_merges_)
    if (auto found = ids_.find(piece); found != ids_.end()) return ids.push_back(found->second);
  std::vector<Part> parts;
  for (size_t at = 0; at < piece.size();) {
    size_t start = at;
    next_utf8(piece, at);
    std::string letter = piece.substr(start, at - start);
    if (!ids_.count(letter)) {
      ids.push_back(-1);  // a byte that the vocabulary does not have
      continue;
    }
    parts.push_back({letter, parts.size() - 1, parts.size() + 1});
  }
  struct Candidate {
    int64_t rank;
    size_t at;
    std::string both;
    bool operator>(const Candidate &other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<Candidate>> queue;
  auto consider = [&](size_t at) {
    if (at >= parts.size() || parts[at].after >= parts.size()) return;
    auto &left = parts[at].text, &right = parts[parts[at].after].text;
    auto found = merges_.find(left + " " + right);
    if (found != merges_.end()) queue.push({found->second.first, at, left + " " + right});
  };
  for (size_t i = 0; i < parts.size(); ++i) consider(i);
  while (!queue.empty()) {
    Candidate best = queue.top();
    queue.pop();
    auto &left = parts[best.at];
    if (left.text.empty() || left.after >= parts.size() || left.text + " " + parts[left.after].text != best.both) continue;
    auto &right = parts[left.after];
    left.text += right.text, right.text.clear();
    left.after = right.after;
    if (right.after < parts.size()) parts[right.after].before = best.at;
    consider(left.before), consider(best.at);
  }
  for (auto &part : parts)
    if (!part.text.empty()) ids.push_back(ids_.at(part.text));
}

std::vector<std::string> Tokenizer::nearest(const std::string &part) const {
  std::string word = is_lowercase_ ? lowercase(part) : is_nfc_ ? nfc(part) : part;
  auto codes = code_points(word);
  if (std::none_of(codes.begin(), codes.end(), is_alnum) || codes.size() > kLongestWord) return {};
  return close_words(word, vocabulary_);
}

void Tokenizer::read_piece(const std::string &piece, std::vector<int64_t> &ids) const {
  if (is_byte_level_) return merge(spelt_in_letters(piece), ids);
  auto found = ids_.find(is_lowercase_ ? lowercase(piece) : piece);
  ids.push_back(found == ids_.end() ? unknown_ : found->second);
}

Tokenizer::Reading Tokenizer::read_text(const std::string &text) const {
  Reading reading;
  auto take = [&](int64_t id, const std::string &part) {
    reading.ids.push_back(id);
    if (id < 0 || id == unknown_) reading.has_unknown = true;
    else if (control_.count(id)) reading.control.push_back(part);
  };
  for (auto &piece : split_added(text)) {
    if (piece.added >= 0) {
      take(piece.added, piece.text);
      continue;
    }
    std::string normal = is_nfc_ ? nfc(piece.text) : piece.text;
    if (add_prefix_space_ && normal[0] != ' ') normal = " " + normal;
    for (auto &part : pieces(normal)) {
      std::vector<int64_t> own;
      read_piece(part, own);
      for (int64_t id : own) take(id, words_.count(id) && is_byte_level_ ? words_.at(id) : part);
    }
  }
  return reading;
}

bool Tokenizer::is_blank_text(const std::string &text) {
  auto codes = code_points(text);
  return std::all_of(codes.begin(), codes.end(), is_blank);
}

std::optional<std::vector<int64_t>> Tokenizer::try_encode(const std::string &text) const {
  if (!is_utf8(text)) return std::nullopt;
  if (is_blank_text(text)) return std::vector<int64_t>();
  Reading reading = read_text(text);
  if (reading.has_unknown || !reading.control.empty()) return std::nullopt;
  return std::move(reading.ids);
}

std::vector<int64_t> Tokenizer::encode(const std::string &text, int64_t max_tokens, const std::string &what) const {
  std::string shown = "the " + what + " " + quoted(cut(text)), at_start = "T" + shown.substr(1);
  if (!is_utf8(text)) throw Error(at_start + " cannot be read: it is no UTF-8. Write it in valid Unicode.");
  if (is_blank_text(text)) return {};
  auto codes = code_points(text);
  if (codes.size() > kMaxCharacters)
    throw Error("The " + what + " has " + std::to_string(codes.size()) + " characters, and at most " +
                std::to_string(kMaxCharacters) + " are read. Shorten it: " + quoted(cut(text)));
  auto [ids, control, has_unknown] = read_text(text);
  if (has_unknown) {
    std::vector<std::string> words, found;  // of which each is refused on its own
    for (size_t i = 0; i < codes.size();) {
      size_t end = i;
      while (end < codes.size() && !is_blank(codes[end])) ++end;
      if (end > i) words.push_back(to_text(codes, i, end));
      i = end + 1;
    }
    unique(words);
    if (words.size() > kMostWords) words.resize(kMostWords);
    auto has_alnum = [](const std::string &part) {
      auto each = code_points(part);
      return std::any_of(each.begin(), each.end(), is_alnum);
    };
    std::vector<std::string> signs;
    for (auto &word : words) {
      std::vector<int64_t> own;
      bool is_found = false;
      for (auto &part : pieces(word)) {
        own.clear(), read_piece(part, own);
        bool is_unknown = std::any_of(own.begin(), own.end(), [&](int64_t id) { return id < 0 || id == unknown_; });
        if (!is_unknown) continue;
        if (!has_alnum(part)) signs.push_back(part);
        else if (!is_found) is_found = true, found.push_back(stripped(word).empty() ? word : stripped(word));
      }
    }
    if (found.empty()) found = signs;
    if (found.empty()) throw Error("The model cannot read all of " + shown + ". Use words of its vocabulary.");
    unique(found);
    std::string hints;
    for (size_t i = 0; i < std::min(found.size(), kNamed); ++i) {
      auto near = nearest(found[i]);
      if (near.empty()) continue;
      hints += (hints.empty() ? ": for " : ", for ") + quoted(found[i]) + " " + quoted(near[0]);
      if (near.size() > 1) hints += " or " + quoted(near[1]);
    }
    throw Error("The model does not know " + listed(found) + " in " + shown + ". Use words of its vocabulary" + hints +
                ". All of them: rf-export inspect BUNDLE --vocabulary");
  }
  if (int64_t(ids.size()) > max_tokens)
    throw Error("The " + what + " has " + std::to_string(ids.size()) + " tokens and the model takes " +
                std::to_string(max_tokens) + (what == "prompt" ? " for this size of picture" : "") + ". Shorten it: " +
                quoted(cut(text)));
  if (!control.empty())
    throw Error(listed(control) + " in " + shown + " is a control token of the model and no text. Leave it out, or write "
                "it otherwise.");
  return ids;
}

std::string Tokenizer::decode(const std::vector<int64_t> &ids) const {
  std::string text;
  bool is_first = true;
  for (int64_t id : ids) {
    auto found = words_.find(id);
    if (found == words_.end() || special_.count(id)) continue;
    if (is_byte_level_) text += bytes_of(found->second);
    else text += (is_first ? "" : " ") + found->second;
    is_first = false;
  }
  return is_byte_level_ ? with_replacements(text) : text;
}

}  // namespace rf_internal
