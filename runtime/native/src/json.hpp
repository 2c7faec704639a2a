// JSON as the bundle's documents have it. Knows nothing of what the keys mean: that is schema.hpp.
//
// Stricter than the standard: no double keys, no more than 50 levels. Like Python's reader it takes NaN and Infinity,
// which the schemas refuse.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace rf_internal {

class Json {
 public:
  struct Number {
    std::string literal;
    bool is_whole;
  };
  using List = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;  // in the order of the file

  Json() = default;
  template <class T>
  explicit Json(T value) : value_(std::move(value)) {}

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  const bool *truth() const { return std::get_if<bool>(&value_); }
  const Number *number() const { return std::get_if<Number>(&value_); }
  const std::string *text() const { return std::get_if<std::string>(&value_); }
  const List *list() const { return std::get_if<List>(&value_); }
  const Object *object() const { return std::get_if<Object>(&value_); }
  Object *object() { return std::get_if<Object>(&value_); }
  bool is_true() const;  // as Python has it: not null, false, zero and empty

  // The value of a key of an object; null where there is none.
  const Json &operator[](const std::string &key) const;

  bool is_whole() const { return number() && number()->is_whole; }
  // A whole number; what is beyond 64 bits becomes the largest or smallest one.
  int64_t whole() const;
  double real() const;

  // The text that Python's json.dumps makes: ", " and ": ", everything but ASCII escaped, the shortest floats.
  std::string dump(bool sort_keys = false) const;

 private:
  void dump_to(std::string &out, bool sort_keys) const;
  std::variant<std::monostate, bool, Number, std::string, List, Object> value_;
};

// Raises Error (damaged) with the name of the file and the place in it.
Json parse_json(const std::string &data, const std::string &where);

// The content of a file of at most `limit` bytes; raises Error.
std::string read_limited(const std::string &path, uint64_t limit);
Json read_json(const std::string &path, uint64_t limit = 16u << 20);
void refuse_lfs_pointer(const std::string &path, const std::string &start);

std::string shortened(const Json &value);      // in JSON, cut off where it is long
std::string quoted(const std::string &text);   // as Python's repr
std::string float_text(double value);          // as Python's repr

}  // namespace rf_internal
