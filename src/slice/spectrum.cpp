#include "dynslice/slice/spectrum.h"

#include "aten.h"
#include "dynslice/tensor/second_moment.h"
#include "dynslice/train/layer_measurement.h"

namespace dynslice {
namespace {

// One place: the energies (mean over the tokens) of the directions, least first, weighed.
class Spectrum {
 public:
  Spectrum(SecondMoment& moment, int64_t tokens, const std::string& where) {
    const at::Tensor mean = moment.take("the residual stream " + where) / static_cast<double>(tokens);
    std::tie(energies_, vectors_) = at::linalg_eigh(mean);
    energies_ = energies_.clamp_min(0);
  }

  // Times each direction's share of G [d, d].
  at::Tensor weighed_by(const at::Tensor& directions) const {
    if (!directions.defined()) return energies_;
    const at::Tensor turned = at::matmul(directions.to(at::kDouble), vectors_);
    return energies_ * (vectors_ * turned).sum(0);
  }
  at::Tensor shares() const { return energies_ / energies_.sum().clamp_min(1e-300); }

 private:
  at::Tensor energies_, vectors_;  // [d] ascending, [d, d]; fp64
};

LossCurve curve_of(const at::Tensor& losses, int64_t least) {
  const at::Tensor sums = losses.cumsum(0).cpu();
  LossCurve curve{{0.0}, {0.0}};
  for (int64_t i = 0; i < sums.numel() - least; ++i) {
    curve.sizes.push_back(static_cast<double>(i + 1));
    curve.losses.push_back(sums[i].item<double>());
  }
  return curve;
}

}  // namespace

std::vector<LossCurve> measure_spectra(const LayerWalk& walk, const TokenWindows& calibration,
                                       const std::vector<double>& importance, SensitivitySource& sensitivity,
                                       int64_t least, const JournalPhase& journal) {
  const bool by_loss = importance.empty();
  const auto measure = [&](LayerStep& step, ResidualStream& stream) {
    const int64_t width = walk.config().hidden_size;
    const at::Device device = walk.options().device;
    SecondMoment entering(width, device), inside(width, device);
    step.transform(stream, [&](const at::Tensor& x) {
      entering.add(x);
      const at::Tensor middle = forward_half(kAttentionHalf, step.layer, step.context, x);
      inside.add(middle);
      return forward_half(kMlpHalf, step.layer, step.context, middle);
    });
    const std::string layer = " layer " + std::to_string(step.index());
    const Spectrum first(entering, stream.tokens(), "entering" + layer);
    const Spectrum second(inside, stream.tokens(), "inside" + layer);
    if (!by_loss) {
      const double weight = importance.at(static_cast<size_t>(step.index())) / 2;
      return to_json(curve_of((first.shares() + second.shares()) * weight, least));
    }
    const auto weighed = [&](const Spectrum& spectrum, int64_t index, StreamPlace place) {
      return spectrum.weighed_by(sensitivity.directions(index, place, device)) * (sensitivity.size(index, place) / 2);
    };
    // What enters the first layer, whose gradient is not measured, is taken for what is inside it.
    const at::Tensor entered = step.index() > 0 ? weighed(first, step.index() - 1, StreamPlace::kLeaving)
                                                : weighed(first, 0, StreamPlace::kInside);
    return to_json(curve_of(entered + weighed(second, step.index(), StreamPlace::kInside), least));
  };
  std::vector<LossCurve> curves;
  for (const OrderedJson& layer :
       measure_layers(walk, "Measuring spectra", calibration, by_loss ? &sensitivity : nullptr, journal, measure))
    curves.push_back(loss_curve_of(layer));
  return curves;
}

}  // namespace dynslice
