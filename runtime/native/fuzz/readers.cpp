// What a fuzzer feeds: one reader of a file of a bundle (RF_READER), with what is done with such a file when a bundle is
// opened. An input is refused with an Error, or taken; anything else is a fault. Knows nothing of where inputs come from.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "check_texts.hpp"
#include "engine.hpp"
#include "error.hpp"
#include "manifest.hpp"
#include "tokenizer.hpp"

namespace {

using namespace rf_internal;

constexpr int64_t kVocabulary = 1000;

// Checksum and bundle_id refuse nearly every changed document: without the one, and with the other one right, what lies
// behind them is reached.
Json resealed(Json content) {
  auto members = content.object();
  if (!members) return content;
  auto is_seal = [](auto &member) { return member.first == "checksum"; };
  members->erase(std::remove_if(members->begin(), members->end(), is_seal), members->end());
  auto files = content["files"].object();
  auto is_entry = [](auto &file) { return file.second["sha256"].text() && file.second["size"].number(); };
  if (!files || !std::all_of(files->begin(), files->end(), is_entry)) return content;
  std::string id = bundle_id_of(read_files(content["files"]));
  for (auto &member : *members)
    if (member.first == "bundle_id") member.second = Json(id);
  return content;
}

template <class Body>
void unless_refused(Body &&body) {
  try {
    body();
  } catch (const Error &) {
  }
}

void require_inside(const std::string &name) {
  std::string path = std::filesystem::path("/bundle/" + name).lexically_normal().string();
  if (path.rfind("/bundle/", 0) || path.size() == 8 || path.find('\0') != std::string::npos) std::abort();
}

[[maybe_unused]] void manifest(const Json &content) {
  unless_refused([&] { read_manifest(content, "manifest.json"); });
  Bundle bundle{"/bundle", read_manifest(resealed(content), "manifest.json")};
  for (auto &file : bundle.manifest.files) require_inside(file.name);
  for (auto &graph : bundle.manifest.graphs) {
    for (auto &name : graph.files)
      if (!bundle.manifest.has_file(name)) std::abort();
    unless_refused([&] { require_verified(bundle, graph.variant); });
  }
  unless_refused([&] { plan_drawing(DrawOptions(), bundle.manifest, 1); });
}

[[maybe_unused]] void engine(const Json &content) {
  unless_refused([&] { read_engine(content, "/engine"); });
  auto engine = read_engine(resealed(content), "/engine");
  for (auto &file : engine.files) require_inside(file.name);
  for (auto &each : engine.files_of) require_inside(each.second);
  Bundle bundle{"/bundle", {}};
  for (const char *device : {"x86_64 avx avx2 fma", "NVIDIA Orin sm_87"}) {
    Target here{engine.target.backend, "1.32.0 3f3f4b5", device};
    unless_refused([&] { check_engine(engine, bundle, engine.variant, here, Verify::size); });
  }
  unless_refused([&] { require_verified(bundle, engine); });
}

[[maybe_unused]] void tokenizer(const Json &content) {
  auto tokenizer = Tokenizer::read(content, "tokenizer.json", kVocabulary, {2, 3});
  for (const char *text : {"a red car", "Two  blue FISH, don't", "\xC3\xA9t\xC3\xA9 12345 \xF0\x9F\x9A\x97\n\n x", "[BOS] <s>"})
    unless_refused([&] { tokenizer->decode(tokenizer->encode(text, 100, "prompt")); });
}

[[maybe_unused]] void check_texts(const Json &content) {
  static const auto tokenizers = [] {
    std::vector<std::unique_ptr<Tokenizer>> made;
    for (const char *json : {
             R"({"model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "red": 2, "car": 3, "!": 4}, "unk_token": "[UNK]"},
                 "pre_tokenizer": {"type": "Whitespace"}, "normalizer": {"type": "Lowercase"}})",
             R"({"model": {"type": "BPE", "vocab": {"a": 0, "c": 1, "r": 2, "Ġ": 3, "ca": 4, "car": 5, "1": 6}, "merges":
                 [["c", "a"], ["ca", "r"]]}, "pre_tokenizer": {"type": "ByteLevel"}, "decoder": {"type": "ByteLevel"},
                 "normalizer": {"type": "NFC"}, "added_tokens": [{"id": 7, "content": "<x>"}]})"})
      made.push_back(Tokenizer::read(parse_json(json, "tokenizer.json"), "tokenizer.json", kVocabulary, {}));
    return made;
  }();
  for (auto &tokenizer : tokenizers)
    unless_refused([&] { replay_check_texts(*tokenizer, content, "check_texts.json"); });
  if (auto texts = content["texts"].list())
    for (auto &each : *texts)
      if (auto text = each["text"].text())
        for (auto &tokenizer : tokenizers)
          unless_refused([&] { tokenizer->decode(tokenizer->encode(*text, 100, "question")); });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  unless_refused([&] { RF_READER(parse_json(std::string(reinterpret_cast<const char *>(data), size), "input")); });
  return 0;
}
