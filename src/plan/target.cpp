#include "dynslice/plan/target.h"

#include <cmath>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

// Averages are told apart to this: less than one direction of a model 16,384 wide.
constexpr double kResolution = 1.0 / 16384;

}  // namespace

double find_average(const AverageSearch& search, const std::function<double(double)>& share_removed) {
  double below = 0, above = search.largest;
  double share_below = share_removed(below), share_above = share_removed(above);
  if (share_above < search.wanted) {
    throw_error(ErrorKind::kUsage, "cannot remove ", 100 * search.wanted, "% of the ", search.what, ": slicing ",
                100 * search.largest, "% of the width, the most there may be, removes ", 100 * share_above,
                "%; ask for less or raise --max-ratio");
  }
  if (share_below >= search.wanted) return below;
  while (above - below > kResolution) {
    const double middle = (below + above) / 2, share = share_removed(middle);
    if (share < search.wanted) {
      below = middle;
      share_below = share;
    } else {
      above = middle;
      share_above = share;
    }
  }
  return std::abs(share_below - search.wanted) < std::abs(share_above - search.wanted) ? below : above;
}

}  // namespace dynslice
