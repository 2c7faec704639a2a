#include "bundle.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "error.hpp"
#include "sha256.hpp"

namespace rf_internal {
namespace {

namespace fs = std::filesystem;
constexpr int64_t kCheapHashBytes = 200'000'000;  // about 0.1 s of a start

std::string hash_of(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> piece(1 << 18);
  Sha256 digest;
  while (file) {
    file.read(piece.data(), std::streamsize(piece.size()));
    digest.update(piece.data(), size_t(file.gcount()));
  }
  return digest.hex();
}

std::string start_of(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  std::string start(64, '\0');
  file.read(start.data(), std::streamsize(start.size()));
  start.resize(size_t(file.gcount()));
  return start;
}

bool is_within(const fs::path &path, const fs::path &folder) {
  auto mismatch = std::mismatch(folder.begin(), folder.end(), path.begin(), path.end());
  return mismatch.first == folder.end();
}

Verdict graphs_verdict(const Bundle &bundle, const Variant &variant) {
  const Json &record = bundle.manifest.verified[variant.key()];
  if (record.is_null()) return {Verdict::unverified, "nobody verified them"};
  const Json &hashes = record["graphs"];
  bool is_named = std::any_of(record.object()->begin(), record.object()->end(),
                              [](auto &member) { return member.first == "graphs"; });
  if (is_named && !hashes.object()) return {Verdict::unverified, "the verdict on them is damaged"};
  auto graphs = bundle.manifest.graphs_of(variant);
  for (const char *name : kGraphs) {
    const Json &known = hashes[name];
    bool is_there = std::any_of(graphs.begin(), graphs.end(), [&](auto graph) { return graph->name == name; });
    if (!known.is_null() && is_there && !(known.text() && *known.text() == bundle.graph_sha256(name, variant)))
      return {Verdict::unverified, std::string(name) + " is another one than the one that was verified"};
  }
  return read_verdict(record);
}

}  // namespace

const GraphEntry &Bundle::graph(const std::string &name, const Variant &variant) const {
  std::set<std::string> found;
  for (auto &graph : manifest.graphs) {
    if (graph.name != name) continue;
    if (graph.variant == variant) return graph;
    found.insert(graph.variant.words());
  }
  std::string there;
  for (auto &each : found) there += (there.empty() ? "" : ", ") + each;
  std::string remedy = "export the bundle again with the precision that you need";
  if (variant.precision.rfind("int8", 0) == 0)
    remedy = "make the graphs with: rf-export calibrate " + path + " --prompts FILE" +
             (variant.precision == "int8" ? "" : " --target tensorrt");
  throw Error(path + " has no " + name + " in " + variant.words() + "; it has " + (there.empty() ? "none" : there) +
              ". Choose one of these, or " + remedy + ".");
}

std::string Bundle::graph_sha256(const std::string &name, const Variant &variant) const {
  std::string lines;
  for (auto &file : graph(name, variant).files) lines += manifest.file(file).sha256 + " " + file + "\n";
  return sha256(lines);
}

Bundle open_bundle(const std::string &path) {
  std::string folder = path;
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  std::string manifest = folder + "/manifest.json";
  struct stat found;
  if (stat(folder.c_str(), &found) || !S_ISDIR(found.st_mode))
    throw Error(folder + " is not a folder. Give the path of an exported bundle.");
  if (stat(manifest.c_str(), &found) || !S_ISREG(found.st_mode))
    throw Error(folder + " has no manifest.json, so it is not a bundle. Make one with: rf-export export");
  Bundle bundle{folder, read_manifest(read_json(manifest), manifest)};
  check_files(folder, bundle.manifest.files, Verify::size);
  return bundle;
}

void check_files(const std::string &folder, std::vector<FileEntry> files, Verify verify) {
  int64_t budget = verify == Verify::size ? 0 : kCheapHashBytes;
  std::stable_sort(files.begin(), files.end(), [](auto &a, auto &b) { return a.size < b.size; });
  std::error_code problem;
  fs::path inside = fs::weakly_canonical(folder, problem);
  for (auto &entry : files) {
    std::string path = folder + "/" + entry.name;
    fs::path real = fs::weakly_canonical(path, problem);
    if (!problem && !is_within(real, inside))  // ONNX Runtime follows none either
      throw Error(path + " is a link out of the folder. Copy the folder with the files that its links lead to.", RF_DAMAGED);
    struct stat found;
    if (stat(path.c_str(), &found) || !S_ISREG(found.st_mode))
      throw Error(path + " is missing: the folder is incomplete. Copy it again, or make it again.", RF_DAMAGED);
    if (found.st_size != entry.size) {
      refuse_lfs_pointer(path, start_of(path));
      throw Error(path + " has " + std::to_string(found.st_size) + " bytes and " + std::to_string(entry.size) +
                      " are expected: it is damaged or was cut off. Copy it again, or make it again.",
                  RF_DAMAGED);
    }
    budget -= entry.size;
    if ((budget >= 0 || verify == Verify::hash) && hash_of(path) != entry.sha256)
      throw Error(path + " differs from what was written (sha256): it is damaged or was changed. Copy it again, or "
                         "make it again.",
                  RF_DAMAGED);
  }
}

Verdict read_verdict(const Json &record) {
  auto has = [&](const char *name) {
    return std::any_of(record.object()->begin(), record.object()->end(), [&](auto &each) { return each.first == name; });
  };
  auto words = [](const Json &value) { return value.text() ? *value.text() : value.dump(); };
  std::string verdict = has("verdict")                               ? words(record["verdict"])
                        : !has("passed") || record["passed"].is_true() ? "passed"
                                                                       : "failed";
  if (verdict == "passed" && (!has("verdict") || record["verdict"].text())) return {Verdict::passed, ""};
  if (verdict == "failed" && (!has("verdict") || record["verdict"].text())) {
    const Json &first = record["first_failure"];
    return {Verdict::failed, first.is_true() ? words(first) : "they do not agree with their reference"};
  }
  const Json &reason = record["reason"];
  return {Verdict::unverified, reason.is_true() ? words(reason) : "their reference is not verified"};
}

void refuse_verdict(const std::string &what, const Verdict &verdict, const std::string &command) {
  throw Error(what + (verdict.word == Verdict::failed ? " failed verification" : " may not be right") + ": " +
              verdict.reason + ". Verify with: " + command +
              ". To use it anyway, generate, understand, tokens, bench and build-engine take --allow-unverified "
              "(Pipeline.load: allow_unverified=True).");
}

void require_verified(const Bundle &bundle, const Variant &variant) {
  Verdict verdict = graphs_verdict(bundle, variant);
  if (verdict.word != Verdict::passed)
    refuse_verdict("The " + variant.words() + " graphs of " + bundle.path, verdict,
                   "rf-export verify " + bundle.path + " --checkpoint CHECKPOINT");
}

}  // namespace rf_internal
