#include "evaluate/python_text.h"

#include <utf8proc.h>

#include <cstdint>

#include "dynslice/text/tokenizer/python_string.h"
#include "dynslice/text/tokenizer/tokenizer_unicode.h"

namespace dynslice {
namespace {

constexpr uint32_t kCapitalSigma = 0x3A3, kFinalSigma = 0x3C2, kSharpS = 0xDF, kCapitalIWithDot = 0x130;

bool is_cased(uint32_t c) {
  const auto code = static_cast<utf8proc_int32_t>(c);
  const auto category = utf8proc_category(code);
  return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL || category == UTF8PROC_CATEGORY_LT;
}

// A capital sigma is a final one behind a letter when no letter follows.
bool ends_word(std::string_view before, std::string_view after) {
  return !before.empty() && is_cased(last_code_point(before)) && (after.empty() || !is_cased(code_point_at(after)));
}

void append_lower(std::string& target, uint32_t c, std::string_view before, std::string_view after) {
  if (c == kCapitalIWithDot) {
    target += "i\xCC\x87";
  } else if (c == kCapitalSigma && ends_word(before, after)) {
    append_utf8(target, kFinalSigma);
  } else {
    append_utf8(target, static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
  }
}

void append_title(std::string& target, uint32_t c) {
  if (c == kSharpS) {
    target += "Ss";
  } else {
    append_utf8(target, static_cast<uint32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))));
  }
}

}  // namespace

std::string_view python_rstrip(std::string_view text) { return python::strip(text, nullptr, false, true); }

std::string_view python_strip(std::string_view text) { return python::strip(text, nullptr, true, true); }

std::string python_capitalize(std::string_view text) {
  std::string result;
  for (size_t at = 0; at < text.size();) {
    const uint32_t c = code_point_at(text.substr(at));
    const size_t next = at + utf8_length(text[at]);
    if (at == 0) {
      append_title(result, c);
    } else {
      append_lower(result, c, text.substr(0, at), text.substr(next));
    }
    at = next;
  }
  return result;
}

}  // namespace dynslice
