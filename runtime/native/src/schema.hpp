// Checks a JSON document against what it has to be: every key is known, present, of its type and in its range. What it
// refuses, and in which words, is what runtime/bundle/strict_json.py refuses. Knows nothing of what the keys mean.
#pragma once

#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "json.hpp"

namespace rf_internal {

struct Schema;

struct Field {
  const char *name;
  const Schema *schema;
  bool is_required = true;
};

struct Schema {
  enum Type { whole, number, text, hash, choice, dim, list, table, record, anything };
  Type type = anything;
  const char *expected = "an object";
  bool may_be_null = false;
  double least = -std::numeric_limits<double>::max(), most = std::numeric_limits<double>::max();
  bool is_above = false;                 // more than `least`
  std::vector<const char *> choices;     // of a text
  size_t num_items = 0, least_items = 0;  // of a list; 0 for any number
  const Schema *item = nullptr;           // of a list, and of the values of a table
  const Schema *key = nullptr;            // of a table
  std::vector<Field> fields;              // of a record
  // What belongs together: a problem in words, or nothing.
  std::function<std::optional<std::string>(const Json &)> rules;
};

// Schemas that several documents share.
extern const Schema kText, kWhole, kPositive, kNotNegative, kAnything, kObject;

// Raises Error (damaged) that says what is wrong in the file `where`, with the path of the key.
void check_schema(const Schema &schema, const Json &content, const std::string &where, const std::string &path = "");

// The object of a document of ours without format, version and checksum; raises Error where it is another one, or was
// changed. `remedy` is what to do again. Versions from `oldest` on are read, where it is not 0.
Json read_document(const Json &content, const std::string &where, const char *format, int64_t version,
                   const std::string &remedy, int64_t oldest = 0);

}  // namespace rf_internal
