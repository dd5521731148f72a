// WikiText-2 (raw): how its lines become the text that perplexity is measured on.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dynslice {

// One row a line, with its newline; a blank line is "".
std::vector<std::string_view> wikitext_rows(std::string_view raw);

// The rows joined with "\n\n".
std::string join_wikitext(std::string_view raw);

}  // namespace dynslice
