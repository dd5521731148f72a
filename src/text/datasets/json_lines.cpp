#include "text/datasets/json_lines.h"

#include <algorithm>
#include <cstdint>

#include "dynslice/support/error.h"

namespace dynslice {

void for_each_json_line(std::string_view content, const std::string& path,
                        const std::function<void(const Json& row, const std::string& where)>& fn) {
  for (int64_t number = 1; !content.empty(); ++number) {
    const size_t end = std::min(content.find('\n'), content.size());
    const std::string_view line = content.substr(0, end);
    content.remove_prefix(std::min(end + 1, content.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = path + ": line " + std::to_string(number);
    fn(parse_json(line, where), where);
  }
}

const std::string& text_of_row(const Json& row, const std::string& where) {
  if (!row.is_object() || !row.contains("text") || !row["text"].is_string()) {
    throw_error(ErrorKind::kBadInput, where, ": expected an object with a string under the key \"text\"");
  }
  return row["text"].get_ref<const std::string&>();
}

}  // namespace dynslice
