#include "dynslice/plan/search.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

namespace dynslice {
namespace {

constexpr int64_t kWaves = 3;
constexpr double kFarthest = 2;    // steps that a parabola is followed for
constexpr double kSameStep = 0.1;  // a vertex as near as this to what was tried is not worth a trial

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Mean 0 and root mean square 1, or all 0.
std::vector<double> normalized(std::vector<double> mode) {
  const double mean = mean_of(mode);
  double squares = 0;
  for (double& value : mode) {
    value -= mean;
    squares += value * value;
  }
  const double size = std::sqrt(squares / static_cast<double>(mode.size()));
  for (double& value : mode) value = size > 1e-9 ? value / size : 0;
  return mode;
}

std::vector<double> wave(int64_t number, size_t layers) {
  std::vector<double> mode(layers);
  for (size_t i = 0; i < layers; ++i)
    mode[i] = std::cos(static_cast<double>(number) * std::numbers::pi * (static_cast<double>(i) + 0.5) /
                       static_cast<double>(layers));
  return normalized(mode);
}

bool is_flat(const std::vector<double>& mode) {
  return std::ranges::all_of(mode, [](double value) { return value == 0; });
}

// Moved by `step` along the mode; what a bound takes, all that are free of it share, so that the mean stays.
std::vector<double> moved(const std::vector<double>& ratios, const std::vector<double>& mode, double step,
                          double limit) {
  std::vector<double> result(ratios.size());
  const auto shifted_mean = [&](double shift) {
    for (size_t i = 0; i < result.size(); ++i) result[i] = std::clamp(ratios[i] + step * mode[i] + shift, 0.0, limit);
    return mean_of(result);
  };
  const double mean = mean_of(ratios), reach = std::abs(step) * static_cast<double>(ratios.size()) + limit;
  double low = -reach, high = reach;
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    (shifted_mean(middle) < mean ? low : high) = middle;
  }
  shifted_mean((low + high) / 2);
  return result;
}

// Where the parabola through the losses at -1, 0 and 1 steps is least, as far as it is followed.
double vertex(double before, double at, double behind) {
  const double curvature = before + behind - 2 * at, slope = (behind - before) / 2;
  if (curvature <= 0) return behind < before ? kFarthest : -kFarthest;
  return std::clamp(-slope / curvature, -kFarthest, kFarthest);
}

class RatioSearch {
 public:
  RatioSearch(std::vector<double> start, const RatioSearchOptions& options,
              const std::function<double(const std::vector<double>&, int64_t)>& loss_of)
      : options_(options), loss_of_(loss_of), result_{std::move(start), {}} {
    modes_.push_back(normalized(result_.ratios));
    for (int64_t number = 1; number <= kWaves; ++number) modes_.push_back(wave(number, result_.ratios.size()));
  }

  RatioSearchResult run() {
    best_ = loss_of_(result_.ratios, 0);
    result_.trials.push_back({0, 0, best_, true});
    double step = options_.step * mean_of(result_.ratios);
    const bool can_move = step > 0 && !std::ranges::all_of(modes_, is_flat);
    while (can_move && may_try()) {
      for (size_t mode = 0; mode < modes_.size(); ++mode) {
        if (!is_flat(modes_[mode])) follow(static_cast<int64_t>(mode), step);
      }
      step /= 2;
    }
    return result_;
  }

 private:
  bool may_try() const { return static_cast<int64_t>(result_.trials.size()) < options_.trials; }

  void follow(int64_t mode, double step) {
    const std::vector<double> start = result_.ratios;
    const double at = best_;
    if (!may_try()) return;
    const double behind = attempt(start, mode, step);
    if (!may_try()) return;
    const double before = attempt(start, mode, -step);
    const double steps = vertex(before, at, behind);
    const bool was_tried = std::min({std::abs(steps), std::abs(steps - 1), std::abs(steps + 1)}) < kSameStep;
    if (!was_tried && may_try()) attempt(start, mode, steps * step);
  }

  double attempt(const std::vector<double>& start, int64_t mode, double step) {
    const std::vector<double> ratios = moved(start, modes_[static_cast<size_t>(mode)], step, options_.max_ratio);
    const double loss = loss_of_(ratios, static_cast<int64_t>(result_.trials.size()));
    result_.trials.push_back({mode, step, loss, loss < best_});
    if (loss < best_) {
      best_ = loss;
      result_.ratios = ratios;
    }
    return loss;
  }

  const RatioSearchOptions options_;
  const std::function<double(const std::vector<double>&, int64_t)>& loss_of_;
  std::vector<std::vector<double>> modes_;
  RatioSearchResult result_;
  double best_ = 0;
};

}  // namespace

RatioSearchResult search_ratios(
    std::vector<double> start, const RatioSearchOptions& options,
    const std::function<double(const std::vector<double>& ratios, int64_t trial)>& loss_of) {
  if (start.empty()) return {};
  return RatioSearch(std::move(start), options, loss_of).run();
}

}  // namespace dynslice
