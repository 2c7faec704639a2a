// The content of manifest.json: what a bundle holds. Knows nothing of the file system. One that was read is valid.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "json.hpp"
#include "plans.hpp"
#include "schema.hpp"
#include "signature.hpp"

namespace rf_internal {

struct FileEntry {
  std::string name, sha256;
  int64_t size;
};

struct Sampling {  // how a picture is drawn where the caller does not say otherwise
  int64_t num_steps, top_k;
  double rep_guidance_scale, pix_guidance_scale, temperature, shift;
  int64_t shift_base_patches;  // 0 where the shift is the same for all sizes
  std::optional<std::vector<double>> times;
  std::pair<double, double> guided;
  double noise_scale;
};

struct Understanding {
  int64_t start_id, max_tokens;
  std::vector<int64_t> stop_ids;
  bool stops(int64_t id) const;
};

struct GraphEntry {
  std::string name, file;
  Variant variant;
  std::vector<std::string> files;  // every one that has to be there to run it
  GraphSignature signature;
};

struct Manifest {
  ModelSpec model;
  Sampling sampling;
  std::optional<Understanding> understanding;
  std::optional<Plan> tuned;
  std::string tokenizer_file, bundle_id;
  std::vector<GraphEntry> graphs;
  std::vector<std::string> requirements;  // what a host has to be able to do besides
  std::vector<FileEntry> files;  // in the order of the manifest
  Json verified, document;

  const FileEntry &file(const std::string &name) const;
  bool has_file(const std::string &name) const;
  std::vector<const GraphEntry *> graphs_of(const Variant &variant) const;
};

// Checks and reads the content of a file `where`; raises Error.
Manifest read_manifest(const Json &content, const std::string &where);

extern const Schema kFileEntry, kGraphName, kPrecision, kDialect;
std::vector<FileEntry> read_files(const Json &table);
std::string bundle_id_of(std::vector<FileEntry> files);
// Why a path of a table of files leads out of the folder, or one of `names` is not there.
std::optional<std::string> table_problem(const Json &files, const std::vector<std::string> &names);

}  // namespace rf_internal
