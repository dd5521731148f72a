#include "dynslice/plan/budget.h"

#include <algorithm>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

// A stretch of a curve's lower convex hull.
struct Stretch {
  size_t part = 0;
  double price = 0;  // of a weight
  double size = 0;
};

void add_hull(const LossCurve& curve, size_t part, std::vector<Stretch>& stretches) {
  const auto slope = [&](size_t a, size_t b) {
    return (curve.losses[b] - curve.losses[a]) / (curve.sizes[b] - curve.sizes[a]);
  };
  std::vector<size_t> hull;
  for (size_t i = 0; i < curve.losses.size(); ++i) {
    while (hull.size() > 1 && slope(hull.back(), i) <= slope(hull[hull.size() - 2], hull.back())) hull.pop_back();
    hull.push_back(i);
  }
  for (size_t i = 1; i < hull.size(); ++i)
    stretches.push_back({part, slope(hull[i - 1], hull[i]), curve.sizes[hull[i]] - curve.sizes[hull[i - 1]]});
}

}  // namespace

OrderedJson to_json(const LossCurve& curve) {
  return {{"sizes", curve.sizes}, {"losses", curve.losses}, {"divisible", curve.divisible}};
}

LossCurve loss_curve_of(const OrderedJson& json) {
  return {json.at("sizes").get<std::vector<double>>(), json.at("losses").get<std::vector<double>>(),
          json.at("divisible").get<bool>()};
}

std::vector<double> allocate_by_losses(const std::vector<LossCurve>& curves, double total) {
  std::vector<Stretch> stretches;
  for (size_t i = 0; i < curves.size(); ++i) add_hull(curves[i], i, stretches);
  // Of a part's own stretches the cheaper ones come first, as a hull has them.
  std::ranges::stable_sort(stretches, {}, &Stretch::price);
  std::vector<double> given(curves.size(), 0.0);
  std::vector<bool> closed(curves.size(), false);
  double left = total, smallest_refused = 0;
  for (const Stretch& stretch : stretches) {
    if (closed[stretch.part]) continue;
    if (!curves[stretch.part].divisible && stretch.size > left) {
      closed[stretch.part] = true;  // what comes after it on its curve cannot be had without it
      smallest_refused = smallest_refused > 0 ? std::min(smallest_refused, stretch.size) : stretch.size;
      continue;
    }
    const double size = std::min(stretch.size, left);
    given[stretch.part] += size;
    left -= size;
  }
  if (left > std::max(1e-6 * std::max(1.0, total), smallest_refused)) {
    throw_error(ErrorKind::kUsage, "the layers cannot give up as much as asked: ", 100 * (total - left) / total,
                " % of it is the most; ask for less or raise --max-ratio");
  }
  return given;
}

}  // namespace dynslice
