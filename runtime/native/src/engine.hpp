// A compiled engine of a bundle: what engine.json says, and whether it may run here; see runtime/bundle/engine.py and
// compatibility.py. Knows nothing of how an engine is made.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bundle.hpp"

namespace rf_internal {

struct Target {  // what compiled graphs belong to
  std::string backend, version, device;
};

struct Engine {
  std::string path;
  Target target;
  Variant variant;
  std::string bundle_id;
  std::map<std::string, std::string> files_of, sources;  // by graph: its file, and the hash of what it was made from
  std::vector<FileEntry> files;
  int64_t window;
  bool is_stripped;  // built without weights
  Json verified;

  std::string file(const std::string &graph) const { return path + "/" + files_of.at(graph); }
};

std::vector<int64_t> version_numbers(const std::string &version);  // 10, 13 and 3 of "10.13.3"

using Warn = std::function<void(const std::string &)>;

Engine open_engine(const std::string &path);
Engine read_engine(const Json &record, const std::string &path);
// Raises Error where it belongs to something else, or is damaged.
void check_engine(const Engine &engine, const Bundle &bundle, const Variant &variant, const Target &target, Verify verify);
// The engine of a bundle that fits, checked, or nothing, which is an error where one `is_required`; those that are passed
// over are told to `warn`.
std::optional<Engine> find_engine(const Bundle &bundle, const Variant &variant, const Target &target, Verify verify,
                                  bool is_required, const Warn &warn);
void require_verified(const Bundle &bundle, const Engine &engine);

}  // namespace rf_internal
