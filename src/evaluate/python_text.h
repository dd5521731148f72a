// The string functions of Python that lm-evaluation-harness' prompts are made with. All texts are valid UTF-8.
#pragma once

#include <string>
#include <string_view>

namespace dynslice {

// str.rstrip() and str.strip(): of what str.isspace() calls space.
std::string_view python_rstrip(std::string_view text);
std::string_view python_strip(std::string_view text);

// str.capitalize(): the first character in title case, all others in lower case.
std::string python_capitalize(std::string_view text);

}  // namespace dynslice
