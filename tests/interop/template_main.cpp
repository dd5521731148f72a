// Runs chat templates for comparison with jinja2: reads a JSON list of {"template", "variables"} from standard input
// and prints a list of {"text"} or {"error"}.
#include <iostream>
#include <iterator>
#include <string>

#include "dynslice/support/error.h"
#include "dynslice/support/json.h"
#include "dynslice/text/chat/chat_template.h"

int main() {
  const std::string input{std::istreambuf_iterator<char>(std::cin), {}};
  dynslice::OrderedJson results = dynslice::OrderedJson::array();
  for (const auto& one : dynslice::OrderedJson::parse(input)) {
    try {
      const dynslice::ChatTemplate chat_template(one.at("template").get<std::string>(), "template");
      results.push_back({{"text", chat_template.render_with(one.at("variables"))}});
    } catch (const dynslice::Error& error) {
      results.push_back({{"error", error.what()}});
    }
  }
  std::cout << results.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
}
