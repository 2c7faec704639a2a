#include "json.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <unordered_set>

#include "error.hpp"
#include "unicode.hpp"
#include "utf8.hpp"

namespace rf_internal {
namespace {

constexpr int kMaxDepth = 50;
constexpr size_t kMaxDigits = 4300;  // of a whole number, as Python has it

struct Damage {
  std::string what;
};

class Parser {
 public:
  explicit Parser(const std::string &text) : text_(text) {}

  Json document() {
    for (size_t at = 0; at < text_.size();)
      if (size_t start = at; next_utf8(text_, at) == 0xFFFFFFFF || is_surrogate_at(start))
        throw Damage{"it is not UTF-8 at byte " + std::to_string(start)};
    if (text_.compare(0, 3, "\xEF\xBB\xBF") == 0) throw Damage{"it begins with a byte order mark"};
    blanks();
    Json content = value(0);
    blanks();
    if (at_ != text_.size()) fail("Extra data", at_);
    return content;
  }

 private:
  bool is_surrogate_at(size_t at) const { return is_surrogate(next_utf8(text_, at)); }

  [[noreturn]] void fail(const std::string &what, size_t at) const {  // as Python says it, in characters
    size_t line = 1, column = 1, index = 0;
    for (size_t i = 0; i < std::min(at, text_.size()); ++i) {
      if ((text_[i] & 0xC0) == 0x80) continue;
      ++index, ++column;
      if (text_[i] == '\n') ++line, column = 1;
    }
    std::ostringstream out;
    out << what << ": line " << line << " column " << column << " (char " << index << ")";
    throw Damage{out.str()};
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void blanks() {
    while (at_ < text_.size() && std::strchr(" \t\n\r", text_[at_]) && text_[at_]) ++at_;
  }

  bool take(const char *word) {
    size_t size = std::strlen(word);
    if (text_.compare(at_, size, word)) return false;
    at_ += size;
    return true;
  }

  Json value(int depth) {
    if (depth >= kMaxDepth) throw Damage{"nested deeper than " + std::to_string(kMaxDepth) + " levels"};
    char first = peek();
    if (first == '{') return object(depth);
    if (first == '[') return list(depth);
    if (first == '"') return Json(string());
    if (take("null")) return Json();
    if (take("true")) return Json(true);
    if (take("false")) return Json(false);
    for (const char *name : {"NaN", "Infinity", "-Infinity"})
      if (take(name)) return Json(Json::Number{name, false});
    return number();
  }

  Json number() {
    size_t start = at_, at = at_;
    auto digit = [&] { return at < text_.size() && text_[at] >= '0' && text_[at] <= '9'; };
    if (at < text_.size() && text_[at] == '-') ++at;
    if (!digit()) fail("Expecting value", start);
    size_t first = at;
    if (text_[at] == '0') ++at; else while (digit()) ++at;
    size_t num_digits = at - first;
    bool is_whole = true;
    if (at + 1 < text_.size() && text_[at] == '.' && std::isdigit(uint8_t(text_[at + 1]))) {
      is_whole = false;
      for (++at; digit();) ++at;
    }
    if (at < text_.size() && (text_[at] == 'e' || text_[at] == 'E')) {
      size_t before = at++;
      if (at < text_.size() && (text_[at] == '+' || text_[at] == '-')) ++at;
      if (digit()) {
        is_whole = false;
        while (digit()) ++at;
      } else {
        at = before;
      }
    }
    if (is_whole && num_digits > kMaxDigits)
      throw Damage{"Exceeds the limit (4300 digits) for integer string conversion: value has " +
                   std::to_string(num_digits) + " digits; use sys.set_int_max_str_digits() to increase the limit"};
    at_ = at;
    return Json(Json::Number{text_.substr(start, at - start), is_whole});
  }

  uint32_t hex(size_t backslash) {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      char c = peek();
      if (!std::isxdigit(uint8_t(c))) fail("Invalid \\uXXXX escape", backslash + 1);
      code = code << 4 | uint32_t(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    }
    return code;
  }

  std::string string() {
    size_t start = at_++;
    std::string out;
    while (true) {
      if (at_ >= text_.size()) fail("Unterminated string starting at", start);
      char c = text_[at_];
      if (c == '"') return ++at_, out;
      if (uint8_t(c) < 32) fail("Invalid control character at", at_);
      if (c != '\\') {
        out += c, ++at_;
        continue;
      }
      size_t backslash = at_++;
      if (at_ >= text_.size()) fail("Unterminated string starting at", start);
      char escape = text_[at_++];
      if (escape == 'u') {
        uint32_t code = hex(backslash);
        if (code >= 0xD800 && code < 0xDC00 && text_.compare(at_, 2, "\\u") == 0) {
          size_t before = at_;
          at_ += 2;
          uint32_t low = hex(before);
          if (low >= 0xDC00 && low < 0xE000) code = 0x10000 + ((code - 0xD800) << 10 | (low - 0xDC00));
          else at_ = before;
        }
        append_utf8(out, code);
        continue;
      }
      const char *found = std::strchr("\"\\/bfnrt", escape);
      if (!found || !escape) fail("Invalid \\escape", backslash);
      out += "\"\\/\b\f\n\r\t"[found - "\"\\/bfnrt"];
    }
  }

  Json list(int depth) {
    Json::List items;
    ++at_, blanks();
    if (peek() == ']') return ++at_, Json(std::move(items));
    while (true) {
      items.push_back(value(depth + 1));
      blanks();
      if (peek() == ']') return ++at_, Json(std::move(items));
      if (peek() != ',') fail("Expecting ',' delimiter", at_);
      ++at_, blanks();
    }
  }

  Json object(int depth) {
    Json::Object members;
    std::unordered_set<std::string> names;
    std::string twice;
    ++at_, blanks();
    if (peek() == '}') return ++at_, Json(std::move(members));
    while (true) {
      if (peek() != '"') fail("Expecting property name enclosed in double quotes", at_);
      std::string name = string();
      blanks();
      if (peek() != ':') fail("Expecting ':' delimiter", at_);
      ++at_, blanks();
      if (!names.insert(name).second && twice.empty()) twice = quoted(name);
      members.emplace_back(std::move(name), value(depth + 1));
      blanks();
      if (peek() == '}') break;
      if (peek() != ',') fail("Expecting ',' delimiter", at_);
      ++at_, blanks();
    }
    if (!twice.empty()) throw Damage{"the key " + twice + " is there twice"};
    return ++at_, Json(std::move(members));
  }

  const std::string &text_;
  size_t at_ = 0;
};

void dump_text(std::string &out, const std::string &text) {
  auto escape = [&](uint32_t code) {
    char buffer[16];
    std::snprintf(buffer, sizeof buffer, "\\u%04x", code & 0xFFFF);
    out += buffer;
  };
  out += '"';
  for (size_t at = 0; at < text.size();) {
    uint32_t code = next_utf8(text, at);
    const char *found = code && code < 128 ? std::strchr("\"\\\b\f\n\r\t", int(code)) : nullptr;
    if (found) out += '\\', out += "\"\\bfnrt"[found - std::strchr("\"\\\b\f\n\r\t", '"')];
    else if (code >= 32 && code < 127) out += char(code);
    else if (code < 0x10000) escape(code);
    else escape(0xD800 + ((code - 0x10000) >> 10)), escape(0xDC00 + ((code - 0x10000) & 0x3FF));
  }
  out += '"';
}

}  // namespace

bool Json::is_true() const {
  if (auto value = truth()) return *value;
  if (number()) return !(real() == 0);
  if (auto value = text()) return !value->empty();
  if (auto value = list()) return !value->empty();
  if (auto value = object()) return !value->empty();
  return false;
}

const Json &Json::operator[](const std::string &key) const {
  static const Json none;
  if (auto members = object())
    for (auto &member : *members)
      if (member.first == key) return member.second;
  return none;
}

int64_t Json::whole() const {
  const std::string &literal = number()->literal;
  int64_t value = 0;
  auto result = std::from_chars(literal.data(), literal.data() + literal.size(), value);
  if (result.ec == std::errc()) return value;
  return literal[0] == '-' ? std::numeric_limits<int64_t>::min() : std::numeric_limits<int64_t>::max();
}

double Json::real() const {  // strtod knows NaN and Infinity, and rounds to the nearest, in any locale's digits
  const std::string &literal = number()->literal;
  double value = 0;
  if (literal == "NaN") return std::numeric_limits<double>::quiet_NaN();
  if (literal == "Infinity") return std::numeric_limits<double>::infinity();
  if (literal == "-Infinity") return -std::numeric_limits<double>::infinity();
  auto result = std::from_chars(literal.data(), literal.data() + literal.size(), value);
  if (result.ec == std::errc::result_out_of_range) {
    // Too large or too small: the exponent tells which, and only the sign of a zero and of an infinity counts.
    size_t mark = literal.find_first_of("eE");
    bool is_small = mark != std::string::npos && literal[mark + 1] == '-';
    double size = is_small ? 0.0 : std::numeric_limits<double>::infinity();
    return literal[0] == '-' ? -size : size;
  }
  return value;
}

std::string float_text(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  char buffer[64];
  auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  std::string text(buffer, end), sign;
  if (text[0] == '-') sign = "-", text.erase(0, 1);
  size_t mark = text.find('e');
  int exponent = std::atoi(text.c_str() + mark + 1);
  std::string digits = text.substr(0, 1) + (mark > 1 ? text.substr(2, mark - 2) : "");
  if (exponent < -4 || exponent >= 16) {
    std::string mantissa = digits.substr(0, 1) + (digits.size() > 1 ? "." + digits.substr(1) : "");
    std::string size = std::to_string(std::abs(exponent));
    return sign + mantissa + (exponent < 0 ? "e-" : "e+") + (size.size() < 2 ? "0" : "") + size;
  }
  if (exponent < 0) return sign + "0." + std::string(size_t(-exponent - 1), '0') + digits;
  if (int(digits.size()) <= exponent + 1) return sign + digits + std::string(size_t(exponent + 1) - digits.size(), '0') + ".0";
  return sign + digits.substr(0, size_t(exponent + 1)) + "." + digits.substr(size_t(exponent + 1));
}

void Json::dump_to(std::string &out, bool sort_keys) const {
  if (is_null()) {
    out += "null";
  } else if (auto value = truth()) {
    out += *value ? "true" : "false";
  } else if (auto value = number()) {
    out += !value->is_whole ? float_text(real()) : value->literal == "-0" ? "0" : value->literal;
  } else if (auto value = text()) {
    dump_text(out, *value);
  } else if (auto value = list()) {
    const char *before = "[";
    for (auto &item : *value) out += before, item.dump_to(out, sort_keys), before = ", ";
    out += value->empty() ? "[]" : "]";
  } else {
    std::vector<const Object::value_type *> members;
    for (auto &member : *object()) members.push_back(&member);
    if (sort_keys)  // by code points, as UTF-8 sorts too
      std::sort(members.begin(), members.end(), [](auto a, auto b) { return a->first < b->first; });
    const char *before = "{";
    for (auto member : members) {
      out += before, dump_text(out, member->first), out += ": ", member->second.dump_to(out, sort_keys), before = ", ";
    }
    out += members.empty() ? "{}" : "}";
  }
}

std::string Json::dump(bool sort_keys) const {
  std::string out;
  dump_to(out, sort_keys);
  return out;
}

std::string shortened(const Json &value) {
  std::string text = value.dump();
  return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

std::string quoted(const std::string &text) {
  char quote = text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
  std::string out(1, quote);
  char buffer[24];
  for (size_t at = 0; at < text.size();) {
    uint32_t code = next_utf8(text, at);
    if (code == uint32_t(quote) || code == '\\') out += '\\', out += char(code);
    else if (code == '\n') out += "\\n";
    else if (code == '\r') out += "\\r";
    else if (code == '\t') out += "\\t";
    else if (is_printable(code)) append_utf8(out, code);
    else {
      const char *form = code < 256 ? "\\x%02x" : code < 65536 ? "\\u%04x" : "\\U%08x";
      std::snprintf(buffer, sizeof buffer, form, code);
      out += buffer;
    }
  }
  return out + quote;
}

Json parse_json(const std::string &data, const std::string &where) {
  try {
    return Parser(data).document();
  } catch (const Damage &damage) {
    throw Error(where + " is not valid JSON (" + damage.what + "): it is damaged or was cut off.", RF_DAMAGED);
  }
}

void refuse_lfs_pointer(const std::string &path, const std::string &start) {
  if (start.rfind("version https://git-lfs.github.com/spec/", 0) == 0)
    throw Error(path + " is a pointer of git-lfs, not the file itself. Fetch it with: git lfs pull", RF_DAMAGED);
}

std::string read_limited(const std::string &path, uint64_t limit) {
  struct stat found;
  if (stat(path.c_str(), &found)) {
    if (errno == ENOENT || errno == ENOTDIR) throw Error(path + " does not exist.", RF_DAMAGED);
    throw Error(path + " cannot be read: " + std::strerror(errno) + ".", RF_DAMAGED);
  }
  if (!S_ISREG(found.st_mode)) throw Error(path + " is not a file.", RF_DAMAGED);  // a pipe would be waited for
  if (uint64_t(found.st_size) > limit)
    throw Error(path + " has " + std::to_string(found.st_size) + " bytes, and at most " + std::to_string(limit) +
                    " are read. It is no such file.",
                RF_DAMAGED);
  std::ifstream file(path, std::ios::binary);
  std::string content(size_t(found.st_size), '\0');
  file.read(content.data(), std::streamsize(content.size()));
  if (!file) throw Error(path + " cannot be read: " + std::strerror(errno) + ".", RF_DAMAGED);
  refuse_lfs_pointer(path, content);
  return content;
}

Json read_json(const std::string &path, uint64_t limit) { return parse_json(read_limited(path, limit), path); }

}  // namespace rf_internal
