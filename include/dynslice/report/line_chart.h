// Curves as a picture: perplexity, or accuracy, against the share of layers at low bits.
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
  bool is_logarithmic = true;  // the axis of y
};

// An SVG file with a legend. Points whose y is not finite, or not positive where its axis is logarithmic, are left out.
// Every point tells its values when pointed at. Text may hold anything.
[[nodiscard]] std::string line_chart_svg(const std::vector<ChartLine>& lines, const ChartLabels& labels);

}  // namespace dynslice
