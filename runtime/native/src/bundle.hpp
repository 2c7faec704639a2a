// A bundle on the disk: opened, checked, and what a verification said of it. Knows nothing of graphs beyond their
// entries in the manifest. See runtime/bundle/folder.py and verdict.py.
#pragma once

#include <string>
#include <vector>

#include "manifest.hpp"

namespace rf_internal {

enum class Verify { automatic, size, hash };

struct Bundle {
  std::string path;
  Manifest manifest;

  std::string file(const std::string &name) const { return path + "/" + name; }
  // The entry of a graph; raises Error saying what there is.
  const GraphEntry &graph(const std::string &name, const Variant &variant) const;
  // Names the content of a graph with its weights.
  std::string graph_sha256(const std::string &name, const Variant &variant) const;
};

Bundle open_bundle(const std::string &path);

// Checks files of a folder against their entries: "automatic" hashes up to 200 MB, the smallest files first.
void check_files(const std::string &folder, std::vector<FileEntry> files, Verify verify);

struct Verdict {
  enum Word { passed, failed, unverified } word;
  std::string reason;  // why it is not "passed"
};
Verdict read_verdict(const Json &record);

// Raises Error where the graphs failed a verification or nobody verified them.
void require_verified(const Bundle &bundle, const Variant &variant);
[[noreturn]] void refuse_verdict(const std::string &what, const Verdict &verdict, const std::string &command);

}  // namespace rf_internal
