// Runs a chat template.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "text/jinja/parser.h"
#include "text/jinja/value.h"

namespace dynslice::jinja {

using Variables = std::vector<std::pair<std::string, Value>>;

// What the template writes. Throws TemplateError with the line of what goes wrong: raise_exception(), an operation
// that its values do not have, or more work than the Budget.
std::string run_template(const Block& program, const Variables& variables);

}  // namespace dynslice::jinja
