// Prints the ids of texts, or why there are none, and what they are decoded to: one text of JSON a line, in and out.
#include <iostream>
#include <string>

#include "error.hpp"
#include "json.hpp"
#include "tokenizer.hpp"

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  try {
    auto tokenizer = rf::Tokenizer::read(argv[1], std::stol(argv[2]), {});
    for (std::string line; std::getline(std::cin, line);) {
      std::string text = *rf::parse_json(line, "a line").text();
      rf::Json::List row;
      try {
        auto ids = tokenizer->encode(text, 1 << 20, "text");
        rf::Json::List list;
        for (auto id : ids) list.push_back(rf::Json(rf::Json::Number{std::to_string(id), true}));
        row = {rf::Json(std::move(list)), rf::Json(tokenizer->decode(ids))};
      } catch (const rf::Error &error) {
        row = {rf::Json(std::string(error.what()))};
      }
      std::cout << rf::Json(std::move(row)).dump() << "\n";
    }
  } catch (const rf::Error &error) {
    std::cout << rf::Json(std::string(error.what())).dump() << "\n";
  }
}
