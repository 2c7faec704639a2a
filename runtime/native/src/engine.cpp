#include "engine.hpp"

#include <algorithm>
#include <filesystem>
#include <regex>
#include <set>
#include <sstream>

#include "error.hpp"

namespace rf_internal {
namespace {

namespace fs = std::filesystem;

const Schema &engine_schema() {
  static const Schema files = [] {
    Schema schema = kObject;
    schema.item = &kFileEntry;
    return schema;
  }();
  auto make = [](std::vector<Field> fields) {
    Schema schema;
    schema.type = Schema::record, schema.expected = "an object", schema.fields = std::move(fields);
    return schema;
  };
  static const Schema graph = make({{"file", &kText}, {"source_sha256", &kText}});
  static const Schema graphs = [] {
    Schema schema = kObject;
    schema.key = &kGraphName, schema.item = &graph;
    return schema;
  }();
  static const Schema target = make({{"backend", &kText}, {"version", &kText}, {"device", &kText}});
  static const Schema record = [&] {
    Schema schema = make({{"target", &target}, {"precision", &kPrecision}, {"dialect", &kDialect, false},
                          {"bundle_id", &kText}, {"graphs", &graphs}, {"files", &files}, {"window", &kPositive, false},
                          {"build", &kObject}, {"verified", &kObject}});
    schema.rules = [](const Json &j) -> std::optional<std::string> {
      for (auto each : kGraphs)
        if (j["graphs"][each].is_null()) return "graph " + quoted(each) + " is missing";
      std::vector<std::string> names;
      for (auto &member : *j["graphs"].object()) names.push_back(*member.second["file"].text());
      return table_problem(j["files"], names);
    };
    return schema;
  }();
  return record;
}

bool ends_with_plus(const std::string &text) { return !text.empty() && text.back() == '+'; }

// A library of TensorRT tells its build from 10.0 on, and Python's package from 10.8 on: what one does not tell may be any.
bool is_same_release(const std::string &built, const std::string &here) {
  auto one = version_numbers(built), other = version_numbers(here);
  size_t known = std::min(one.size(), other.size());
  return known >= 3 && std::equal(one.begin(), one.begin() + long(known), other.begin());
}

bool version_fits(const Target &built, const Target &here) {
  if (!ends_with_plus(built.version))
    return built.version == here.version || (here.backend != "ort" && is_same_release(built.version, here.version));
  auto oldest = version_numbers(built.version), found = version_numbers(here.version);
  bool is_same = oldest.empty() || found.empty() ? oldest.empty() && found.empty() : oldest[0] == found[0];
  return is_same && oldest <= found;
}

bool is_device(const std::string &built, const std::string &here) {
  if (!ends_with_plus(built)) return built == here;
  static const std::regex capability("(\\S+) sm_(\\d{1,9})");
  std::smatch lowest, found;
  std::string text = built.substr(0, built.size() - 1);
  if (text.size() > 200 || !std::regex_match(text, lowest, capability) || !std::regex_match(here, found, capability))
    return false;
  return lowest[1] == found[1] && std::stol(lowest[2]) <= std::stol(found[2]);
}

bool device_fits(const Target &built, const Target &here) {
  for (size_t start = 0;; ) {
    size_t end = built.device.find(" | ", start);
    if (is_device(built.device.substr(start, end == std::string::npos ? end : end - start), here.device)) return true;
    if (end == std::string::npos) return false;
    start = end + 3;
  }
}

std::string difference(const std::string &built, const std::string &here) {
  auto words = [](const std::string &text) {
    std::stringstream in(text);
    std::set<std::string> found;
    for (std::string word; in >> word;) found.insert(word);
    return found;
  };
  auto features = words(built), others = words(here);
  features.erase("|");
  auto without = [](const std::set<std::string> &some, const std::set<std::string> &gone) {
    std::string text;
    for (auto &each : some)
      if (!gone.count(each)) text += " " + each;
    return text;
  };
  std::string has = without(features, others), lacks = without(others, features);
  return (has.empty() ? "" : "has" + has) + (has.empty() || lacks.empty() ? "" : ", ") + (lacks.empty() ? "" : "lacks" + lacks);
}

std::string mismatch(const Engine &engine, const Variant &variant, const Target &here) {
  const Target &built = engine.target;
  if (built.backend != here.backend)
    return "is of the backend " + built.backend + ", and " + here.backend + " was asked for";
  if (engine.variant.precision != variant.precision)
    return "is in " + engine.variant.precision + ", and " + variant.precision + " was asked for";
  if (engine.variant.dialect != variant.dialect)
    return "was built from " + engine.variant.dialect + " graphs, and " + variant.dialect + " was asked for";
  if (!version_fits(built, here))
    return "was built with " + here.backend + " " + built.version + ", and " + here.version + " is installed";
  if (!device_fits(built, here)) return "was built on another device (" + difference(built.device, here.device) + ")";
  return "";
}

std::string foreign(const Engine &engine, const Bundle &bundle) {
  for (auto &[name, source] : engine.sources)
    if (source != bundle.graph_sha256(name, engine.variant))
      return "was built from another " + name + ": from bundle " + engine.bundle_id + ", and this is bundle " +
             bundle.manifest.bundle_id;
  return "";
}

std::string build_command(const Bundle &bundle, const Target &target, const Variant &variant) {
  return "rf-export build-engine " + bundle.path + " --backend " + target.backend + variant.options();
}

void require_weights(const Engine &engine, const Bundle &bundle) {
  if (engine.is_stripped)
    throw Error("The engine " + engine.path + " has no weights yet. Fill them in: rf-export refit-engine " + engine.path +
                    " " + bundle.path,
                RF_MISMATCH);
}

}  // namespace

std::vector<int64_t> version_numbers(const std::string &version) {
  std::vector<int64_t> found;
  for (size_t i = 0; i < version.size();) {
    if (!std::isdigit(uint8_t(version[i]))) {
      ++i;
      continue;
    }
    int64_t number = 0;
    for (; i < version.size() && std::isdigit(uint8_t(version[i])); ++i)
      number = std::min<int64_t>(number * 10 + (version[i] - '0'), int64_t(1) << 40);
    found.push_back(number);
  }
  return found;
}

Engine open_engine(const std::string &path) { return read_engine(read_json(path + "/engine.json"), path); }

Engine read_engine(const Json &record, const std::string &path) {
  std::string where = path + "/engine.json";
  Json j = read_document(record, where, "rf-export-engine", 2, "Build the engine");
  check_schema(engine_schema(), j, where);
  auto &target = j["target"];
  Engine engine{path,
                {*target["backend"].text(), *target["version"].text(), *target["device"].text()},
                {*j["precision"].text(), j["dialect"].is_null() ? "classic" : *j["dialect"].text()},
                *j["bundle_id"].text(),
                {},
                {},
                read_files(j["files"]),
                j["window"].is_null() ? 1 : j["window"].whole(),
                false,
                j["verified"]};
  for (auto &[name, graph] : *j["graphs"].object()) {
    engine.files_of[name] = *graph["file"].text();
    engine.sources[name] = *graph["source_sha256"].text();
  }
  auto &weights = j["build"]["options"]["weights"];
  engine.is_stripped = weights.text() && *weights.text() == "stripped";
  return engine;
}

void check_engine(const Engine &engine, const Bundle &bundle, const Variant &variant, const Target &target, Verify verify) {
  std::string command = build_command(bundle, target, variant), reason = mismatch(engine, variant, target);
  if (reason.empty()) reason = foreign(engine, bundle);
  if (!reason.empty()) throw Error("The engine " + engine.path + " " + reason + ". Run: " + command, RF_MISMATCH);
  try {
    check_files(engine.path, engine.files, verify);
  } catch (const Error &error) {
    throw Error("The engine is damaged: " + std::string(error.what()) + " Build it again: " + command, RF_DAMAGED);
  }
  require_weights(engine, bundle);
}

std::optional<Engine> find_engine(const Bundle &bundle, const Variant &variant, const Target &target, Verify verify,
                                  bool is_required, const Warn &warn) {
  std::vector<std::string> folders;
  std::error_code none;
  for (auto &entry : fs::directory_iterator(bundle.path + "/engines", none)) {
    std::string name = entry.path().filename().string();
    bool is_temporary = name.find(".partial-") != std::string::npos || name.find(".replaced-") != std::string::npos;
    if (!is_temporary && name[0] != '.' && fs::exists(entry.path() / "engine.json", none))
      folders.push_back(entry.path().string());
  }
  std::sort(folders.begin(), folders.end());
  std::string passed_over;
  for (auto &folder : folders) {
    std::optional<Engine> engine;
    try {
      engine = open_engine(folder);
    } catch (const Error &error) {
      warn("An engine is passed over: " + std::string(error.what()));
      continue;
    }
    if (!(engine->variant == variant) || engine->target.backend != target.backend) continue;
    std::string reason = mismatch(*engine, variant, target);
    if (reason.empty()) {
      check_engine(*engine, bundle, variant, target, verify);
      return engine;
    }
    passed_over = "The engine " + engine->path + " " + reason;
  }
  if (is_required) {
    if (passed_over.empty())
      passed_over = bundle.path + " has no engine of the backend " + target.backend + " in " + variant.precision +
                    (variant.is_modern() ? " " + variant.dialect : "");
    throw Error(passed_over + ", and " + target.backend + " runs engines only. Run: " + build_command(bundle, target, variant),
                RF_MISMATCH);
  }
  if (!passed_over.empty())
    warn(passed_over + ": the ONNX graphs are used instead. For the faster engine run: " +
         build_command(bundle, target, variant));
  return std::nullopt;
}

void require_verified(const Bundle &bundle, const Engine &engine) {
  Verdict verdict{Verdict::unverified, "nobody ran it yet: it was built where no such device is"};
  if (engine.verified.is_true()) verdict = read_verdict(engine.verified);
  if (verdict.word != Verdict::passed)
    refuse_verdict("The engine " + engine.path, verdict,
                   "rf-export verify " + bundle.path + " --backend " + engine.target.backend);
}

}  // namespace rf_internal
