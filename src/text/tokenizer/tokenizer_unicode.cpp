#include "dynslice/text/tokenizer/tokenizer_unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <memory>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

unsigned char byte_at(std::string_view text, size_t i) { return static_cast<unsigned char>(text[i]); }

struct Utf8Step {
  size_t length;  // of the character, or of the maximal invalid sequence
  bool valid;
};

// The second byte's range depends on the lead byte: it shuts out overlong forms, surrogates and what lies
// beyond U+10FFFF (Unicode, table 3-7).
bool second_byte_fits(unsigned char lead, unsigned char second) {
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  return second >= low && second <= high;
}

Utf8Step step(std::string_view text, size_t at) {
  const unsigned char lead = byte_at(text, at);
  if (lead < 0x80) return {1, true};
  if (lead < 0xC2 || lead > 0xF4) return {1, false};
  const size_t length = utf8_length(text[at]);
  for (size_t i = 1; i < length; ++i) {
    if (at + i >= text.size()) return {i, false};
    const unsigned char next = byte_at(text, at + i);
    const bool fits = i == 1 ? second_byte_fits(lead, next) : (next & 0xC0) == 0x80;
    if (!fits) return {i, false};
  }
  return {length, true};
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

int form_options(NormalForm form) {
  switch (form) {
    case NormalForm::kNfc:
      return UTF8PROC_COMPOSE;
    case NormalForm::kNfd:
      return UTF8PROC_DECOMPOSE;
    case NormalForm::kNfkc:
      return UTF8PROC_COMPOSE | UTF8PROC_COMPAT;
    case NormalForm::kNfkd:
      return UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT;
  }
  return 0;
}

}  // namespace

void check_text_length(std::string_view text) {
  // A byte may become two, a space three.
  constexpr size_t kMost = static_cast<size_t>(std::numeric_limits<int32_t>::max()) / 4;
  if (text.size() > kMost) {
    throw_error(ErrorKind::kBadInput, "a text of ", text.size(),
                " bytes is too long to be tokenized at once; cut it into parts of at most ", kMost, " bytes");
  }
}

bool is_valid_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Utf8Step next = step(text, at);
    if (!next.valid) return false;
    at += next.length;
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string clean;
  clean.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Step next = step(text, at);
    if (next.valid) {
      clean.append(text.substr(at, next.length));
    } else {
      clean.append("\xEF\xBF\xBD");
    }
    at += next.length;
  }
  return clean;
}

uint32_t code_point_at(std::string_view text) {
  const size_t length = utf8_length(text[0]);
  const uint32_t lead = byte_at(text, 0);
  if (length == 1) return lead;
  uint32_t code_point = lead & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) code_point = code_point << 6 | (byte_at(text, i) & 0x3Fu);
  return code_point;
}

uint32_t last_code_point(std::string_view text) {
  size_t start = text.size() - 1;
  while ((byte_at(text, start) & 0xC0) == 0x80) --start;
  return code_point_at(text.substr(start));
}

int64_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

void append_utf8(std::string& text, uint32_t code_point) {
  utf8proc_uint8_t bytes[4];
  const auto length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes);
  text.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(length));
}

std::string normalize_unicode(std::string_view text, NormalForm form) {
  if (is_ascii(text)) return std::string(text);
  utf8proc_uint8_t* raw = nullptr;
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | form_options(form));
  const auto length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                   static_cast<utf8proc_ssize_t>(text.size()), &raw, options);
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(raw, &std::free);
  if (length < 0) {
    throw_error(ErrorKind::kOutOfResources, "text of ", text.size(),
                " bytes cannot be brought to its Unicode normal form (", utf8proc_errmsg(length),
                "); cut it into smaller parts");
  }
  return {reinterpret_cast<const char*>(raw), static_cast<size_t>(length)};
}

bool is_numeric(uint32_t code_point) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code_point));
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL || category == UTF8PROC_CATEGORY_NO;
}

bool is_whitespace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_python_space(uint32_t c) { return is_whitespace(c) || (c >= 0x1C && c <= 0x1F); }

bool is_word(uint32_t code_point) {
  constexpr uint32_t kZeroWidthNonJoiner = 0x200C;
  constexpr uint32_t kZeroWidthJoiner = 0x200D;
  if (code_point == kZeroWidthNonJoiner || code_point == kZeroWidthJoiner) return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code_point))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

}  // namespace dynslice
