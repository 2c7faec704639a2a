// Texts to token ids and back, with a Hugging Face tokenizer.json of a kind that is read here exactly: WordLevel, and
// byte-level BPE. What else there is, is refused by name: give ids then. See runtime/text/tokenizer.py.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "json.hpp"

namespace rf_internal {

class Tokenizer {
 public:
  // `control_ids` stand for a place and not for a text. Raises Error: unsupported where the file is of another kind.
  static std::unique_ptr<Tokenizer> read(const std::string &path, int64_t vocab_size,
                                         const std::vector<int64_t> &control_ids);
  static std::unique_ptr<Tokenizer> read(const Json &content, const std::string &where, int64_t vocab_size,
                                         const std::vector<int64_t> &control_ids);

  // Ids of a text, none for a blank one. `what` is "prompt", "question" or "text" in messages. Raises Error for what the
  // model could only misread.
  std::vector<int64_t> encode(const std::string &text, int64_t max_tokens, const std::string &what) const;
  // The same without a word: none for what `encode` refuses, but for texts that are too long.
  std::optional<std::vector<int64_t>> try_encode(const std::string &text) const;
  // One that ends within a character ends with the sign of the unknown.
  std::string decode(const std::vector<int64_t> &ids) const;
  const char *kind() const { return is_byte_level_ ? "byte-level BPE" : "WordLevel"; }

 private:
  struct Piece {  // of a text: a token that was added to the vocabulary, or what the model reads
    std::string text;
    int64_t added = -1;
  };

  struct Reading {
    std::vector<int64_t> ids;
    std::vector<std::string> control;  // parts that are control tokens
    bool has_unknown = false;
  };

  Tokenizer() = default;
  static bool is_blank_text(const std::string &text);
  Reading read_text(const std::string &text) const;
  void read_piece(const std::string &piece, std::vector<int64_t> &ids) const;
  void read_words(const Json &j);
  void read_bpe(const Json &j);
  void read_added(const Json &j);
  std::vector<Piece> split_added(const std::string &text) const;
  std::vector<std::string> pieces(const std::string &text) const;  // as the pre-tokenizer cuts them
  void merge(const std::string &piece, std::vector<int64_t> &ids) const;
  std::vector<std::string> nearest(const std::string &word) const;

  bool is_byte_level_ = false, is_lowercase_ = false, is_nfc_ = false, add_prefix_space_ = false, ignore_merges_ = false;
  int max_digits_ = 0;  // of a piece of digits; 0: the pattern of GPT-2
  bool splits_at_blanks_ = false;  // WordLevel: only there
  std::unordered_map<std::string, int64_t> ids_;
  std::unordered_map<int64_t, std::string> words_;
  std::unordered_map<std::string, std::pair<int64_t, int64_t>> merges_;  // "left right": rank and id
  std::vector<std::pair<std::string, int64_t>> added_;                   // that are found in texts
  std::unordered_set<int64_t> special_, control_;
  std::vector<std::string> vocabulary_;  // what a text can be made of, in the order of the ids
  int64_t unknown_ = -1;
};

}  // namespace rf_internal
