// In the place of libFuzzer where the compiler has none, with its options -runs and -seed: changes the files that are given,
// and files of folders, without knowing what the readers run.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed);
extern "C" size_t LLVMFuzzerCustomCrossOver(const uint8_t *one, size_t size, const uint8_t *other, size_t other_size,
                                            uint8_t *out, size_t room, unsigned seed);

namespace fs = std::filesystem;
constexpr size_t kRoom = 1 << 20;
constexpr unsigned kSeconds = 20;  // of an input: SIGALRM ends the program

int main(int argc, char **argv) {
  std::vector<std::string> inputs;
  auto read = [&](const fs::path &path) {
    std::ostringstream out;
    out << std::ifstream(path, std::ios::binary).rdbuf();
    if (out.str().size() < kRoom) inputs.push_back(out.str());
  };
  uint64_t runs = 100000, seed = 1;
  for (int i = 1; i < argc; ++i) {
    std::string option = argv[i];
    if (option.rfind("-runs=", 0) == 0) runs = std::strtoull(argv[i] + 6, nullptr, 10);
    else if (option.rfind("-seed=", 0) == 0) seed = std::strtoull(argv[i] + 6, nullptr, 10);
    else if (option.rfind("-", 0) == 0) std::fprintf(stderr, "without libFuzzer %s has no meaning\n", argv[i]);
    else if (fs::is_directory(option)) for (auto &entry : fs::directory_iterator(option)) read(entry.path());
    else read(option);
  }
  if (inputs.empty()) return std::fprintf(stderr, "usage: %s [-runs=N] [-seed=N] FILE|FOLDER...\n", argv[0]), 2;
  std::mt19937_64 random(seed);
  std::vector<uint8_t> data(kRoom), other(kRoom);
  for (uint64_t i = 0; i < runs; ++i) {
    auto &input = inputs[random() % inputs.size()], &second = inputs[random() % inputs.size()];
    auto bytes = [](const std::string &text) { return reinterpret_cast<const uint8_t *>(text.data()); };
    data.assign(input.begin(), input.end());
    data.resize(kRoom);
    size_t size = LLVMFuzzerCustomMutator(data.data(), input.size(), kRoom, unsigned(random()));
    if (random() % 7 == 0) {
      size = LLVMFuzzerCustomCrossOver(data.data(), size, bytes(second), second.size(), other.data(), kRoom, unsigned(random()));
      data.swap(other);
    }
    std::vector<uint8_t> exact(data.begin(), data.begin() + std::ptrdiff_t(size));  // no room behind it for a sanitizer to miss
    alarm(kSeconds);
    LLVMFuzzerTestOneInput(exact.data(), exact.size());
  }
  std::printf("%s: %llu inputs, no fault\n", argv[0], static_cast<unsigned long long>(runs));
}
