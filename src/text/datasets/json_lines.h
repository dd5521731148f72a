// Files of one JSON value a line.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "dynslice/support/json.h"

namespace dynslice {

// Calls `fn` with every line that is not blank, parsed, and with its place for messages ("PATH: line 3"). Throws
// kBadInput, naming that place, for a line that is no JSON.
void for_each_json_line(std::string_view content, const std::string& path,
                        const std::function<void(const Json& row, const std::string& where)>& fn);

// The "text" of a row. Throws kBadInput, naming `where`, when the row is no object with a string there.
const std::string& text_of_row(const Json& row, const std::string& where);

}  // namespace dynslice
