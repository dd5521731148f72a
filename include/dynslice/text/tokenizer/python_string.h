// UTF-8 that behaves as Python's str, a sequence of code points: what chat templates and the prompts of tasks are made
// with. All of it is valid UTF-8.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dynslice::python {

[[nodiscard]] std::vector<std::string_view> characters(std::string_view text);

// White space as str.isspace() sees it, or the characters of `chars`, taken off the ends.
[[nodiscard]] std::string_view strip(std::string_view text, const std::string* chars, bool left, bool right);

// By single code points, of those that have an upper and a lower case.
[[nodiscard]] std::string to_upper(std::string_view text);
[[nodiscard]] std::string to_lower(std::string_view text);
[[nodiscard]] std::string capitalize(std::string_view text);  // the first character alone is large
[[nodiscard]] std::string to_title(std::string_view text);    // the first letter of every word

// str.split(): at `separator`, or without one at runs of white space; at most `limit` times, below 0: at all.
[[nodiscard]] std::vector<std::string_view> split(std::string_view text, const std::string* separator, int64_t limit);
// str.splitlines(), for line feeds.
[[nodiscard]] std::vector<std::string_view> split_lines(std::string_view text);

// The first byte of `part` in `text` from `from` on, npos when it is not there. Time linear in both.
[[nodiscard]] size_t find_text(std::string_view text, std::string_view part, size_t from = 0);
// Occurrences of `part`, not empty, that do not overlap.
[[nodiscard]] size_t count_text(std::string_view text, std::string_view part);

// str.replace(), at most `limit` times, below 0: everywhere. `old` is not empty.
[[nodiscard]] std::string replace_text(std::string_view text, std::string_view old, std::string_view with,
                                       int64_t limit = -1);

}  // namespace dynslice::python
