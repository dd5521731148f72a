#include "dynslice/report/heat_map.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iomanip>
#include <sstream>

#include "report/svg_text.h"

namespace dynslice {
namespace {

constexpr int kCell = 14, kMargin = 40, kLegend = 90;

// Dark to bright, readable in grey and by the colour-blind (stations of matplotlib's viridis).
constexpr std::array<std::array<double, 3>, 5> kColourScale = {
    {{68, 1, 84}, {59, 82, 139}, {33, 145, 140}, {94, 201, 98}, {253, 231, 37}}};

std::string colour(double share) {
  const double place = std::clamp(share, 0.0, 1.0) * (kColourScale.size() - 1);
  const size_t low = std::min(static_cast<size_t>(place), kColourScale.size() - 2);
  const double part = place - static_cast<double>(low);
  std::ostringstream text;
  text << "rgb(";
  for (size_t c = 0; c < 3; ++c)
    text << (c > 0 ? "," : "")
         << std::lround(kColourScale[low][c] + part * (kColourScale[low + 1][c] - kColourScale[low][c]));
  text << ')';
  return text.str();
}

std::string rectangle(int x, int y, int width, int height, double share, const std::string& tip) {
  std::ostringstream text;
  text << "<rect x=\"" << x << "\" y=\"" << y << "\" width=\"" << width << "\" height=\"" << height << "\" fill=\""
       << colour(share) << "\">";
  if (!tip.empty()) text << "<title>" << tip << "</title>";
  text << "</rect>\n";
  return text.str();
}

}  // namespace

std::string heat_map_svg(const std::vector<std::vector<double>>& matrix, const std::string& title) {
  const auto size = static_cast<int>(matrix.size());
  double low = INFINITY, high = -INFINITY;
  for (const auto& row : matrix) {
    for (const double value : row) low = std::min(low, value), high = std::max(high, value);
  }
  const double span = high > low ? high - low : 1;
  const int side = size * kCell, right = kMargin + side, width = right + kLegend, height = side + 2 * kMargin;
  std::ostringstream svg;
  svg << std::fixed << std::setprecision(4);
  svg << "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" << width << "\" height=\"" << height
      << "\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
      << "<text x=\"" << kMargin << "\" y=\"24\" font-size=\"14\">" << escaped_for_svg(title) << "</text>\n";
  for (int row = 0; row < size; ++row) {
    for (int column = 0; column < size; ++column) {
      const double value = matrix[static_cast<size_t>(row)][static_cast<size_t>(column)];
      std::ostringstream tip;
      tip << std::fixed << std::setprecision(4) << "layers " << row << " and " << column << ": " << value;
      svg << rectangle(kMargin + column * kCell, kMargin + row * kCell, kCell, kCell, (value - low) / span, tip.str());
    }
  }
  const int step = std::max(1, size / 12);
  for (int layer = 0; layer < size; layer += step) {
    const int middle = kMargin + layer * kCell + kCell / 2;
    svg << "<text x=\"" << middle << "\" y=\"" << kMargin + side + 14 << "\" text-anchor=\"middle\">" << layer
        << "</text>\n<text x=\"" << kMargin - 5 << "\" y=\"" << middle + 4 << "\" text-anchor=\"end\">" << layer
        << "</text>\n";
  }
  constexpr int kSteps = 40;
  for (int i = 0; i < kSteps; ++i) {
    const int top = kMargin + side * i / kSteps, bottom = kMargin + side * (i + 1) / kSteps;
    svg << rectangle(right + 16, top, 14, bottom - top, 1 - (i + 0.5) / kSteps, "");
  }
  svg << "<text x=\"" << right + 34 << "\" y=\"" << kMargin + 10 << "\">" << high << "</text>\n<text x=\"" << right + 34
      << "\" y=\"" << kMargin + side << "\">" << low << "</text>\n</svg>\n";
  return svg.str();
}

}  // namespace dynslice
