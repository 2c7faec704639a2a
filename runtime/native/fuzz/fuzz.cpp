// Feeds changed inputs to a reader, in one process: to be built with sanitizers (-DRF_SANITIZE=address,undefined).
//
//   rf_fuzz manifest|engine|tokenizer SECONDS SEED INPUT...
//
// Every input file is changed over and over, by bytes and by swapping parts of lines; what is refused is refused with an
// Error, and anything else ends the program. Knows nothing of what the readers read.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "engine.hpp"
#include "error.hpp"
#include "manifest.hpp"
#include "tokenizer.hpp"

namespace {

using Random = std::mt19937_64;

std::string changed(std::string text, const std::vector<std::string> &inputs, Random &random) {
  static const char *const pieces[] = {"null", "-1", "1e400", "9223372036854775808", "\"\\ud800\"", "[]", "{}", "\"../x\"", "0",
                                       "true", "\"\"", "[[[[[[[[[[", "NaN", "\"x\": 1,", "\xFF", "0.5", "1"};
  for (uint64_t count = 1 + random() % 4; count--;) {
    size_t at = text.empty() ? 0 : random() % text.size(), size = random() % 3 ? 1 : random() % 64;
    size = std::min(size, text.size() - at);
    switch (random() % 7) {
      case 0: text.erase(at, size); break;
      case 1: text.insert(at, text.substr(at, size)); break;
      case 2: if (size) text[at] = char(random()); break;
      case 3: text.insert(at, pieces[random() % (sizeof pieces / sizeof *pieces)]); break;
      case 4: {  // a value in place of another one
        size_t colon = text.find(": ", at), end = text.find_first_of(",}\n", colon == std::string::npos ? at : colon);
        if (colon != std::string::npos && end != std::string::npos)
          text.replace(colon + 2, end - colon - 2, pieces[random() % (sizeof pieces / sizeof *pieces)]);
        break;
      }
      case 5: {  // a part of another input
        auto &other = inputs[random() % inputs.size()];
        if (!other.empty()) {
          size_t from = random() % other.size();
          text.replace(at, size, other.substr(from, random() % 200));
        }
        break;
      }
      default: if (random() % 10 == 0) text.resize(at);
    }
  }
  return text;
}

void read(const std::string &target, const std::string &text, const std::string &path) {
  if (target == "manifest") {
    rf_internal::read_manifest(rf_internal::parse_json(text, "manifest.json"), "manifest.json");
    return;
  }
  std::ofstream(path + (target == "engine" ? "/engine.json" : "/tokenizer.json"), std::ios::binary) << text;
  if (target == "engine") {
    rf_internal::open_engine(path);
    return;
  }
  auto tokenizer = rf_internal::Tokenizer::read(path + "/tokenizer.json", 1000, {2, 3});
  for (const char *each : {"a red car", "Two  blue FISH, don't", "\xC3\xA9t\xC3\xA9 12345 \xF0\x9F\x9A\x97\n\n x", "[BOS] <s>"}) {
    try {
      tokenizer->decode(tokenizer->encode(each, 100, "prompt"));
    } catch (const rf_internal::Error &) {
    }
  }
}

}  // namespace

int main(int argc, char **argv) {
  if (argc < 5) return std::fprintf(stderr, "usage: rf_fuzz manifest|engine|tokenizer SECONDS SEED INPUT...\n"), 2;
  std::string target = argv[1];
  char folder[] = "/tmp/rf-fuzz-XXXXXX";
  if (!mkdtemp(folder)) return std::perror("mkdtemp"), 1;
  std::vector<std::string> inputs;
  for (int i = 4; i < argc; ++i) {
    std::ostringstream out;
    out << std::ifstream(argv[i], std::ios::binary).rdbuf();
    inputs.push_back(out.str());
  }
  Random random(std::strtoull(argv[3], nullptr, 10));
  auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atol(argv[2]));
  uint64_t tried = 0, accepted = 0;
  for (; std::chrono::steady_clock::now() < end; ++tried) {
    std::string text = changed(inputs[random() % inputs.size()], inputs, random);
    try {
      read(target, text, folder);
      ++accepted;
    } catch (const rf_internal::Error &) {
    } catch (const std::bad_alloc &) {
    }
  }
  std::printf("%s: %llu inputs, %llu accepted, no fault\n", target.c_str(), (unsigned long long)tried, (unsigned long long)accepted);
}
