// Curves as a picture: perplexity against the share of layers at low bits.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace dynslice {

struct ChartLine {
  std::string name;
  std::vector<std::pair<double, double>> points;  // x rising
};

struct ChartLabels {
  std::string title, x, y;
};

// An SVG file with a legend. y is on a logarithmic axis, and must be positive; points whose y is not finite are left
// out. Every point tells its values when pointed at. Text may hold anything.
std::string line_chart_svg(const std::vector<ChartLine>& lines, const ChartLabels& labels);

}  // namespace dynslice
