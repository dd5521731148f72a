// A matrix as a picture: the CKA of all pairs of layers, where alike layers show as bright patches.
#pragma once

#include <string>
#include <vector>

namespace dynslice {

// A square matrix as an SVG file, row 0 at the top, colours from the lowest to the highest value; every cell tells its
// row, column and value when pointed at. Text in `title` may hold anything.
[[nodiscard]] std::string heat_map_svg(const std::vector<std::vector<double>>& matrix, const std::string& title);

}  // namespace dynslice
