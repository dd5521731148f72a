#include "dynslice/report/line_chart.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iomanip>
#include <sstream>

#include "report/svg_text.h"

namespace dynslice {
namespace {

constexpr int kWidth = 720, kHeight = 440, kLeft = 70, kRight = 190, kTop = 44, kBottom = 50;

// Told apart by the colour-blind as well (Okabe and Ito).
constexpr std::array kLineColours = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                     "#E69F00", "#56B4E9", "#000000", "#999999"};

struct Axis {
  double low = 0, high = 1;
  double share(double value) const { return high > low ? (value - low) / (high - low) : 0.5; }
};

double x_place(const Axis& axis, double x) { return kLeft + axis.share(x) * (kWidth - kLeft - kRight); }

// The axis of y, in logarithms or not.
struct Heights {
  bool is_logarithmic = true;
  Axis axis;
  double scaled(double y) const { return is_logarithmic ? std::log(y) : y; }
  double value(double scaled) const { return is_logarithmic ? std::exp(scaled) : scaled; }
  double place(double y) const { return kHeight - kBottom - axis.share(scaled(y)) * (kHeight - kTop - kBottom); }
  bool is_drawn(const std::pair<double, double>& point) const { return std::isfinite(scaled(point.second)); }
};

std::vector<double> even_ticks(const Axis& axis) {
  std::vector<double> all;
  for (int i = 0; i <= 5; ++i) all.push_back(axis.low + (axis.high - axis.low) * i / 5);
  return all;
}

// 1, 2 and 5 times powers of ten between the ends, fewer where they would crowd.
std::vector<double> ticks(double low, double high) {
  std::vector<double> all;
  for (int power = static_cast<int>(std::floor(std::log10(low))); std::pow(10, power) <= high; ++power) {
    for (const double step : {1.0, 2.0, 5.0}) {
      const double value = step * std::pow(10, power);
      if (value >= low && value <= high) all.push_back(value);
    }
  }
  if (all.size() > 8)
    std::erase_if(all, [](double v) { return std::abs(std::log10(v) - std::round(std::log10(v))) > 1e-9; });
  if (all.size() < 2) all = {low, high};
  return all;
}

std::string number(double value) {
  std::ostringstream text;
  text << std::setprecision(4) << value;
  return text.str();
}

}  // namespace

std::string line_chart_svg(const std::vector<ChartLine>& lines, const ChartLabels& labels) {
  Axis x{INFINITY, -INFINITY};
  Heights y{labels.is_logarithmic, {INFINITY, -INFINITY}};
  for (const ChartLine& line : lines) {
    for (const auto& point : line.points) {
      if (!y.is_drawn(point)) continue;
      x = {std::min(x.low, point.first), std::max(x.high, point.first)};
      y.axis = {std::min(y.axis.low, y.scaled(point.second)), std::max(y.axis.high, y.scaled(point.second))};
    }
  }
  if (!(x.low <= x.high)) x = y.axis = Axis{};
  std::ostringstream svg;
  svg << std::fixed << std::setprecision(1);
  svg << "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" << kWidth << "\" height=\"" << kHeight
      << "\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
      << "<text x=\"" << kLeft << "\" y=\"24\" font-size=\"14\">" << escaped_for_svg(labels.title) << "</text>\n"
      << "<text x=\"" << (kLeft + kWidth - kRight) / 2 << "\" y=\"" << kHeight - 10 << "\" text-anchor=\"middle\">"
      << escaped_for_svg(labels.x) << "</text>\n<text transform=\"translate(16," << kHeight / 2
      << ") rotate(-90)\" text-anchor=\"middle\">" << escaped_for_svg(labels.y) << "</text>\n";
  const std::vector<double> levels =
      y.is_logarithmic ? ticks(y.value(y.axis.low), y.value(y.axis.high)) : even_ticks(y.axis);
  for (const double tick : levels) {
    svg << "<path d=\"M" << kLeft << ' ' << y.place(tick) << "H" << kWidth - kRight << "\" stroke=\"#ddd\"/><text x=\""
        << kLeft - 6 << "\" y=\"" << y.place(tick) + 4 << "\" text-anchor=\"end\">" << number(tick) << "</text>\n";
  }
  for (const double tick : even_ticks(x)) {
    svg << "<text x=\"" << x_place(x, tick) << "\" y=\"" << kHeight - kBottom + 18 << "\" text-anchor=\"middle\">"
        << number(tick) << "</text>\n";
  }
  for (size_t i = 0; i < lines.size(); ++i) {
    const char* colour = kLineColours[i % kLineColours.size()];
    std::ostringstream path, dots;
    path << std::fixed << std::setprecision(1);
    dots << std::fixed << std::setprecision(1);
    for (const auto& point : lines[i].points) {
      if (!y.is_drawn(point)) continue;
      path << (path.str().empty() ? 'M' : 'L') << x_place(x, point.first) << ' ' << y.place(point.second);
      dots << "<circle cx=\"" << x_place(x, point.first) << "\" cy=\"" << y.place(point.second) << "\" r=\"3\" fill=\""
           << colour << "\"><title>" << escaped_for_svg(lines[i].name) << ": " << number(point.first) << ", "
           << number(point.second) << "</title></circle>\n";
    }
    const int row = kTop + 18 * static_cast<int>(i);
    svg << "<path d=\"" << path.str() << "\" fill=\"none\" stroke=\"" << colour << "\" stroke-width=\"1.5\"/>\n"
        << dots.str() << "<path d=\"M" << kWidth - kRight + 12 << ' ' << row << "h18\" stroke=\"" << colour
        << "\" stroke-width=\"3\"/><text x=\"" << kWidth - kRight + 36 << "\" y=\"" << row + 4 << "\">"
        << escaped_for_svg(lines[i].name) << "</text>\n";
  }
  svg << "</svg>\n";
  return svg.str();
}

}  // namespace dynslice
