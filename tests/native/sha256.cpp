// The hash of stdin, taken in pieces of different sizes: by any processor's way, and by the fastest that this one has.
#include <algorithm>
#include <iostream>
#include <iterator>
#include <string>

#include "sha256.hpp"

int main() {
  std::string data((std::istreambuf_iterator<char>(std::cin)), {});
  for (auto blocks : {rf_internal::Sha256::portable, rf_internal::Sha256::fastest()}) {
    rf_internal::Sha256 hash(blocks);
    for (size_t at = 0, size = 1; at < data.size(); at += size, size = size * 3 % 257)
      hash.update(data.data() + at, std::min(size, data.size() - at));
    std::cout << hash.hex() << "\n";
  }
}
