// Changes to a text of JSON: by bytes, by values, by parts of lines that come twice. Of two kinds of changes libFuzzer
// has one of its own, where it is linked. Knows nothing of what the readers read.
#include <algorithm>
#include <cstring>
#include <random>
#include <string>

extern "C" __attribute__((weak)) size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);

namespace {

const char *const kPieces[] = {"null", "-1",  "1e400", "9223372036854775808", "\"\\ud800\"", "[]",       "{}",     "\"../x\"", "0",
                               "true", "\"\"", "[[[[[[[[[[", "NaN", "\"x\": 1,", "\xFF", "0.5", "1", "\"/etc\"", "\"a/../b\""};

std::string changed(std::string text, std::mt19937_64 &random) {
  size_t at = text.empty() ? 0 : random() % text.size(), size = random() % 3 ? 1 : random() % 64;
  size = std::min(size, text.size() - at);
  auto piece = [&] { return kPieces[random() % (sizeof kPieces / sizeof *kPieces)]; };
  switch (random() % 7) {
    case 0: return text.erase(at, size);
    case 1: return text.insert(at, text.substr(at, size));
    case 2: if (size) text[at] = char(random()); return text;
    case 3: return text.insert(at, piece());
    case 4: {  // a value in place of another one
      size_t colon = text.find(": ", at), end = text.find_first_of(",}\n", colon == std::string::npos ? at : colon);
      return colon == std::string::npos || end == std::string::npos ? text : text.replace(colon + 2, end - colon - 2, piece());
    }
    case 5: {  // another part of it
      size_t from = text.empty() ? 0 : random() % text.size();
      return text.replace(at, size, std::string(text, from, random() % 200));
    }
    default: return random() % 10 ? text : text.substr(0, at);
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed) {
  std::mt19937_64 random(seed);
  if (LLVMFuzzerMutate && random() % 2) return LLVMFuzzerMutate(data, size, room);
  std::string text(reinterpret_cast<char *>(data), size);
  for (uint64_t count = 1 + random() % 4; count--;) text = changed(std::move(text), random);
  size = std::min(text.size(), room);
  std::memcpy(data, text.data(), size);
  return size;
}

extern "C" size_t LLVMFuzzerCustomCrossOver(const uint8_t *one, size_t size, const uint8_t *other, size_t other_size,
                                            uint8_t *out, size_t room, unsigned seed) {
  std::mt19937_64 random(seed);
  std::string text(reinterpret_cast<const char *>(one), size);
  size_t at = size ? random() % size : 0, from = other_size ? random() % other_size : 0;
  text.replace(at, random() % 64, std::string(reinterpret_cast<const char *>(other) + from, std::min(other_size - from, size_t(random() % 200))));
  size = std::min(text.size(), room);
  std::memcpy(out, text.data(), size);
  return size;
}
