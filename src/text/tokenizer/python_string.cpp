#include "dynslice/text/tokenizer/python_string.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "dynslice/text/tokenizer/tokenizer_unicode.h"

namespace dynslice::python {
namespace {

uint32_t upper(uint32_t c) { return static_cast<uint32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))); }
uint32_t lower(uint32_t c) { return static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))); }

template <typename Map>
std::string map_characters(std::string_view text, Map map) {
  std::string out;
  for (const std::string_view one : characters(text)) append_utf8(out, map(code_point_at(one)));
  return out;
}

}  // namespace

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> result;
  for (size_t at = 0; at < text.size(); at += result.back().size())
    result.push_back(text.substr(at, utf8_length(text[at])));
  return result;
}

std::string_view strip(std::string_view text, const std::string* chars, bool left, bool right) {
  const auto goes = [&](std::string_view one) {
    return chars == nullptr ? is_python_space(code_point_at(one)) : chars->find(one) != std::string::npos;
  };
  while (left && !text.empty() && goes(text.substr(0, utf8_length(text[0])))) text.remove_prefix(utf8_length(text[0]));
  while (right && !text.empty()) {
    size_t begin = text.size() - 1;
    while ((static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
    if (!goes(text.substr(begin))) break;
    text = text.substr(0, begin);
  }
  return text;
}

std::string to_upper(std::string_view text) { return map_characters(text, upper); }

std::string to_lower(std::string_view text) { return map_characters(text, lower); }

std::string capitalize(std::string_view text) {
  bool first = true;
  return map_characters(text, [&](uint32_t c) { return std::exchange(first, false) ? upper(c) : lower(c); });
}

std::string to_title(std::string_view text) {
  bool in_word = false;
  return map_characters(text, [&](uint32_t c) {
    const bool cased = upper(c) != lower(c);
    const uint32_t mapped = in_word ? lower(c) : upper(c);
    in_word = cased;
    return mapped;
  });
}

std::vector<std::string_view> split(std::string_view text, const std::string* separator, int64_t limit) {
  std::vector<std::string_view> parts;
  const auto may_split = [&] { return limit < 0 || static_cast<int64_t>(parts.size()) < limit; };
  if (separator != nullptr) {
    size_t begin = 0;
    for (size_t at = 0; may_split() && (at = find_text(text, *separator, begin)) != std::string_view::npos;) {
      parts.push_back(text.substr(begin, at - begin));
      begin = at + separator->size();
    }
    parts.push_back(text.substr(begin));
    return parts;
  }
  text = strip(text, nullptr, true, false);
  while (!text.empty()) {
    size_t end = may_split() ? 0 : text.size();
    while (may_split() && end < text.size() && !is_python_space(code_point_at(text.substr(end))))
      end += utf8_length(text[end]);
    parts.push_back(text.substr(0, end));
    text = strip(text.substr(end), nullptr, true, false);
  }
  return parts;
}

std::vector<std::string_view> split_lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    lines.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

size_t find_text(std::string_view text, std::string_view part, size_t from) {
  const void* found = ::memmem(text.data() + from, text.size() - from, part.data(), part.size());
  return found == nullptr ? std::string_view::npos : static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

size_t count_text(std::string_view text, std::string_view part) {
  size_t count = 0;
  for (size_t at = find_text(text, part); at != std::string_view::npos; at = find_text(text, part, at + part.size()))
    ++count;
  return count;
}

std::string replace_text(std::string_view text, std::string_view old, std::string_view with, int64_t limit) {
  std::string out;
  size_t begin = 0;
  for (size_t at = 0; limit != 0 && (at = find_text(text, old, begin)) != std::string_view::npos; --limit) {
    out.append(text.substr(begin, at - begin)).append(with);
    begin = at + old.size();
  }
  return out.append(text.substr(begin));
}

}  // namespace dynslice::python
