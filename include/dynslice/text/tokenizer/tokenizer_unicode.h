// The little of Unicode that tokenizers need: UTF-8 made valid, code points, normal forms, character classes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace dynslice {

// Throws kBadInput for a text too long to be tokenized at once: positions in it are 32-bit numbers.
void check_text_length(std::string_view text);

[[nodiscard]] bool is_valid_utf8(std::string_view text);

// Every maximal invalid sequence becomes one U+FFFD, as Python's bytes.decode("utf-8", "replace") does.
[[nodiscard]] std::string replace_invalid_utf8(std::string_view text);

// The bytes of the character that begins with `lead`. Only for valid UTF-8.
[[nodiscard]] inline size_t utf8_length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

// The code point at the start of `text`, which is valid UTF-8 and not empty.
[[nodiscard]] uint32_t code_point_at(std::string_view text);

// The code point of the character that ends `text`, which is valid UTF-8 and not empty.
[[nodiscard]] uint32_t last_code_point(std::string_view text);

void append_utf8(std::string& text, uint32_t code_point);

// Code points of `text`, which is valid UTF-8.
[[nodiscard]] int64_t count_characters(std::string_view text);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// `text` is valid UTF-8. Throws kOutOfResources when memory is short.
[[nodiscard]] std::string normalize_unicode(std::string_view text, NormalForm form);

[[nodiscard]] bool is_numeric(uint32_t code_point);     // general category Nd, Nl or No
[[nodiscard]] bool is_whitespace(uint32_t code_point);  // property White_Space
// What Python's str.isspace() and str.split() take for space: White_Space, and four separators of the ASCII range.
[[nodiscard]] bool is_python_space(uint32_t code_point);
[[nodiscard]] bool is_word(uint32_t code_point);  // what \w means in UTS 18: letters, marks, decimal digits, connectors

}  // namespace dynslice
