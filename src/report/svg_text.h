// Text inside SVG.
#pragma once

#include <string>

namespace dynslice {

// With &, < and > as XML has them.
std::string escaped_for_svg(const std::string& text);

}  // namespace dynslice
