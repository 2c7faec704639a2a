// What has to be known of Unicode to read texts as the tokenizers do. Tables: unicode_tables.inc.
#pragma once

#include <cstdint>
#include <string>

namespace rf_internal {

bool is_printable(uint32_t code);  // as Python's str.isprintable
bool is_letter(uint32_t code);     // \p{L}
bool is_number(uint32_t code);     // \p{N}
bool is_word(uint32_t code);       // \w
bool is_space(uint32_t code);      // \s, White_Space

std::string lowercase(const std::string &text);  // as Rust's and Python's, character by character
std::string nfc(const std::string &text);        // Unicode normal form C

}  // namespace rf_internal
