#include "schema.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"
#include "sha256.hpp"
#include "utf8.hpp"

namespace rf_internal {
namespace {

Schema simple(Schema::Type type, const char *expected) {
  Schema schema;
  schema.type = type, schema.expected = expected;
  return schema;
}

Schema from(double least, const char *expected) {
  Schema schema = simple(Schema::whole, expected);
  schema.least = least;
  return schema;
}

bool is_of(const Schema &schema, const Json &content) {  // itself: not what it holds
  if (content.is_null() && schema.may_be_null) return true;
  switch (schema.type) {
    case Schema::whole:
      return content.is_whole() && double(content.whole()) >= schema.least;
    case Schema::number: {
      if (!content.number()) return false;
      double value = content.real();
      return value >= schema.least && value <= schema.most && !(schema.is_above && value == schema.least);
    }
    case Schema::text:
      return content.text() && is_utf8(*content.text());
    case Schema::hash:
      return content.text() && content.text()->size() == 64 &&
             content.text()->find_first_not_of("0123456789abcdef") == std::string::npos;
    case Schema::dim:
      return is_of(kPositive, content) || is_of(kText, content);
    case Schema::choice:
      return content.text() && std::any_of(schema.choices.begin(), schema.choices.end(),
                                           [&](const char *each) { return *content.text() == each; });
    case Schema::list: {
      if (!content.list()) return false;
      size_t size = content.list()->size();
      return size >= schema.least_items && (!schema.num_items || size == schema.num_items);
    }
    case Schema::table:
    case Schema::record:
      return content.object();
    case Schema::anything:
      return true;
  }
  return false;
}

[[noreturn]] void refuse(const std::string &where, const std::string &problem) {
  throw Error(where + problem + ". Correct the file, or make it again.", RF_DAMAGED);
}

std::string bare(const std::string &path) { return path.rfind('.', 0) == 0 ? bare(path.substr(1)) : path; }

void check_record(const Schema &schema, const Json &content, const std::string &where, const std::string &path) {
  auto &members = *content.object();
  std::vector<std::string> unknown, missing;
  for (auto &member : members) {
    auto is_its = [&](auto &field) { return member.first == field.name; };
    auto field = std::find_if(schema.fields.begin(), schema.fields.end(), is_its);
    if (field == schema.fields.end()) unknown.push_back(member.first);
    else check_schema(*field->schema, member.second, where, path + "." + member.first);
  }
  std::string start = bare(path), prefix = start.empty() ? "" : start + ".";
  for (auto &field : schema.fields) {
    auto is_it = [&](auto &member) { return member.first == field.name; };
    if (field.is_required && std::none_of(members.begin(), members.end(), is_it)) missing.push_back(prefix + field.name);
  }
  auto listed = [](const std::vector<std::string> &names) {
    std::string text;
    for (auto &name : names) text += (text.empty() ? "" : ", ") + quoted(name);
    return text;
  };
  if (!missing.empty()) refuse(where, ": " + listed(missing) + (missing.size() == 1 ? " is missing" : " are missing"));
  std::sort(unknown.begin(), unknown.end());
  for (auto &name : unknown) name = prefix + name;
  if (!unknown.empty()) refuse(where, ": unknown " + listed(unknown));
  if (auto problem = schema.rules ? schema.rules(content) : std::nullopt)
    refuse(where, ": " + (start.empty() ? "" : start + ": ") + *problem);
}

}  // namespace

const Schema kText = simple(Schema::text, "a text"), kWhole = from(-INFINITY, "a whole number"),
             kPositive = from(1, "a whole number >= 1"), kNotNegative = from(0, "a whole number >= 0"),
             kAnything = simple(Schema::anything, "anything"), kObject = [] {
               Schema schema = simple(Schema::table, "an object");
               schema.key = &kText, schema.item = &kAnything;
               return schema;
             }();

void check_schema(const Schema &schema, const Json &content, const std::string &where, const std::string &path) {
  bool fits = is_of(schema, content);
  if (content.object() && schema.type == Schema::record) return check_record(schema, content, where, path);
  if (content.object() && schema.type == Schema::table) {
    for (auto &[name, value] : *content.object()) {
      check_schema(*schema.key, Json(name), where, path + "." + name);
      check_schema(*schema.item, value, where, path + "." + name);
    }
  } else if (content.list() && schema.type == Schema::list) {
    for (size_t i = 0; i < content.list()->size(); ++i)
      check_schema(*schema.item, (*content.list())[i], where, path + "[" + std::to_string(i) + "]");
  }
  if (fits) return;
  std::string name = bare(path);
  refuse(where, (name.empty() ? "" : ": " + quoted(name)) + " must be " + schema.expected + ", found " +
                    shortened(content));
}

Json read_document(const Json &content, const std::string &where, const char *format, int64_t version,
                   const std::string &remedy, int64_t oldest) {
  const Json &form = content["format"];
  if (!content.object() || !form.text() || *form.text() != format)
    throw Error(where + " is no file of the format " + quoted(format) + ", found " +
                    shortened(content.object() ? form : content) + ". Give a file that rf-export wrote.",
                RF_DAMAGED);
  const Json &found = content["format_version"];
  if (!found.is_whole() || found.whole() < 1)
    throw Error(where + ": 'format_version' must be a whole number >= 1, found " + shortened(found) + ". " + remedy +
                    " again.",
                RF_DAMAGED);
  if (found.whole() > version || found.whole() < (oldest ? oldest : version)) {
    std::string again = remedy, reads = (oldest ? std::to_string(oldest) + " to " : "") + std::to_string(version);
    if (found.whole() > version) {
      again[0] = char(std::tolower(again[0]));
      again = "Install a newer rf-export, or " + again;
    }
    throw Error(where + " has format version " + found.dump() + ", and this rf-export reads " + reads +
                    ". " + again + " again.",
                RF_MISMATCH);
  }
  Json::Object plain;
  const Json *seal = nullptr;
  for (auto &member : *content.object()) {
    if (member.first == "checksum") seal = &member.second;
    else plain.push_back(member);
  }
  Json document{std::move(plain)};
  if (seal && !(seal->text() && *seal->text() == sha256(document.dump(true)).substr(0, 16)))
    throw Error(where + " differs from what was written (checksum): it is damaged or was changed. Copy it again, "
                        "make it again, or remove the key 'checksum' if you changed it on purpose.",
                RF_DAMAGED);
  auto &members = *document.object();
  members.erase(std::remove_if(members.begin(), members.end(),
                               [](auto &member) { return member.first == "format" || member.first == "format_version"; }),
                members.end());
  return document;
}

}  // namespace rf_internal
