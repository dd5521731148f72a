#include "dynslice/allocate/budget.h"

#include <algorithm>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

// A stretch of a curve's lower convex hull.
struct Stretch {
  size_t layer = 0;
  double price = 0;  // of a unit
  double units = 0;
};

void add_hull(const std::vector<double>& losses, size_t layer, std::vector<Stretch>& stretches) {
  std::vector<size_t> hull;
  const auto slope = [&](size_t a, size_t b) { return (losses[b] - losses[a]) / static_cast<double>(b - a); };
  for (size_t r = 0; r < losses.size(); ++r) {
    while (hull.size() > 1 && slope(hull.back(), r) <= slope(hull[hull.size() - 2], hull.back())) hull.pop_back();
    hull.push_back(r);
  }
  for (size_t i = 1; i < hull.size(); ++i) {
    stretches.push_back({layer, slope(hull[i - 1], hull[i]), static_cast<double>(hull[i] - hull[i - 1])});
  }
}

}  // namespace

std::vector<double> allocate_by_losses(const std::vector<LossCurve>& curves, double total) {
  std::vector<Stretch> stretches;
  for (size_t i = 0; i < curves.size(); ++i) add_hull(curves[i].losses, i, stretches);
  // Of a layer's own stretches the cheaper ones come first, as a hull has them.
  std::ranges::stable_sort(stretches, {}, &Stretch::price);
  std::vector<double> given(curves.size(), 0.0);
  double left = total;
  for (const Stretch& stretch : stretches) {
    const double units = std::min(stretch.units, left);
    given[stretch.layer] += units;
    left -= units;
  }
  if (left > 1e-6 * std::max(1.0, total)) {
    throw_error(ErrorKind::kUsage, "the layers cannot give up as much as asked: ", total - left, " of ", total,
                " units; ask for less or raise --max-ratio");
  }
  return given;
}

}  // namespace dynslice
