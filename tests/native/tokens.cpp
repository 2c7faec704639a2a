// Prints the ids of texts, or why there are none, and what they are decoded to: one text of JSON a line, in and out.
#include <iostream>
#include <string>

#include "error.hpp"
#include "json.hpp"
#include "tokenizer.hpp"

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  try {
    auto tokenizer = rf_internal::Tokenizer::read(argv[1], std::stol(argv[2]), {});
    for (std::string line; std::getline(std::cin, line);) {
      std::string text = *rf_internal::parse_json(line, "a line").text();
      rf_internal::Json::List row;
      try {
        auto ids = tokenizer->encode(text, 1 << 20, "text");
        rf_internal::Json::List list;
        for (auto id : ids) list.push_back(rf_internal::Json(rf_internal::Json::Number{std::to_string(id), true}));
        row = {rf_internal::Json(std::move(list)), rf_internal::Json(tokenizer->decode(ids))};
      } catch (const rf_internal::Error &error) {
        row = {rf_internal::Json(std::string(error.what()))};
      }
      std::cout << rf_internal::Json(std::move(row)).dump() << "\n";
    }
  } catch (const rf_internal::Error &error) {
    std::cout << rf_internal::Json(std::string(error.what())).dump() << "\n";
  }
}
