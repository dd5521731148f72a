#include <optional>

#include "aten.h"
#include "dynslice/model/architecture.h"
#include "dynslice/modular/modular.h"
#include "dynslice/tensor/elimination.h"
#include "dynslice/tensor/inner_moment.h"
#include "dynslice/tensor/kernels.h"
#include "dynslice/train/layer_measurement.h"
#include "modular/head_elimination.h"
#include "modular/places.h"
#include "modular/writer.h"

namespace dynslice {
namespace {

// `scale` takes the eliminations' losses to nats a token.
LossCurve neuron_curve(Elimination& elimination, const DecoderLayer& layer, int64_t least, double scale) {
  const double a_neuron = (layer.shape.is_gated ? 3.0 : 2.0) * static_cast<double>(layer.down_proj.weight.size(0));
  elimination.reduce_to(least);
  LossCurve curve{{0.0}, {0.0}};
  for (const Removal& removal : elimination.removals()) {
    curve.sizes.push_back(static_cast<double>(curve.sizes.size()) * a_neuron);
    curve.losses.push_back(removal.loss * scale);
  }
  return curve;
}

// `scale` takes the heads' losses to nats a token, with caution.
void add_head_curve(HeadElimination& heads, const DecoderLayer& layer, bool may_lose_all, double scale,
                    LayerCurves& curves) {
  const int64_t a_head = layer.o_proj.weight.size(0) * (layer.o_proj.weight.size(1) / layer.shape.num_attention_heads);
  const auto size = [&](const HeadCount& left) {
    return static_cast<double>(2 * (left.heads + left.kv_heads) * a_head);
  };
  const double whole = size(heads.left());
  double loss = 0;
  while (heads.left().heads > 0) {
    loss += heads.step();
    if (heads.left().heads == 0 && !may_lose_all) break;
    curves.counts.push_back(heads.left());
    curves.heads.sizes.push_back(whole - size(heads.left()));
    curves.heads.losses.push_back(loss * scale);
  }
}

OrderedJson to_json(const LayerCurves& curves) {
  OrderedJson json{{"neurons", to_json(curves.neurons)}, {"heads", to_json(curves.heads)}};
  json["counts"] = OrderedJson::array();
  for (const HeadCount& left : curves.counts) json["counts"].push_back({left.heads, left.kv_heads});
  return json;
}

LayerCurves curves_of(const OrderedJson& json) {
  LayerCurves curves{loss_curve_of(json.at("neurons")), loss_curve_of(json.at("heads")), {}};
  for (const OrderedJson& left : json.at("counts"))
    curves.counts.push_back({left.at(0).get<int64_t>(), left.at(1).get<int64_t>()});
  return curves;
}

}  // namespace

double default_head_caution(const SensitivitySource& sensitivity) { return sensitivity.windows() >= 16 ? 2 : 4; }

std::vector<LayerCurves> measure_loss_curves(const LayerWalk& walk, const TokenWindows& calibration,
                                             SensitivitySource& sensitivity, const ModularOptions& options,
                                             int64_t least, const JournalPhase& journal) {
  check_modular(walk.checkpoint());
  const double head_caution = options.head_caution.value_or(default_head_caution(sensitivity));
  const auto measure = [&](LayerStep& step, ResidualStream& stream) {
    const DecoderLayer& layer = step.layer;
    const at::Device device = walk.options().device;
    const HeadCount all{layer.shape.num_attention_heads, layer.shape.num_key_value_heads};
    std::optional<InnerMoment> mixed;
    if (options.heads && architecture_of(walk.config()).can_remove_heads())
      mixed.emplace(layer.o_proj.weight.size(1), 0, options.by_norm, device);
    InnerMoment inner(layer.shape.intermediate_size, 0, options.by_norm, device);
    step.transform(stream, [&](const at::Tensor& x) {
      Taps attention;
      if (mixed) {
        attention.inner = [&](const at::Tensor& heads) {
          mixed->add(seen_inside(kAttentionHalf, layer, step.context, heads), {}, x);
        };
      }
      const at::Tensor middle = forward_half(kAttentionHalf, layer, step.context, x, attention);
      return forward_half(kMlpHalf, layer, step.context, middle, {.inner = [&](const at::Tensor& neurons) {
                            inner.add(seen_inside(kMlpHalf, layer, step.context, neurons), {}, middle);
                          }});
    });
    const auto directions = [&](StreamPlace place) { return sensitivity.directions(step.index(), place, device); };
    const auto size = [&](StreamPlace place) { return sensitivity.size(step.index(), place); };
    LayerCurves found;
    found.heads = {{0.0}, {0.0}, /*divisible=*/false};
    found.counts = {all};
    if (mixed) {
      HeadElimination heads(mixed->take(mixed_in(step.index())), seen_writer(kAttentionHalf, layer),
                            directions(StreamPlace::kInside), options.ridge, all, step.layer.shape.head_dim,
                            mixed_in(step.index()));
      const HeadCount fewest = fewest_heads(walk.config(), static_cast<size_t>(step.index()));
      add_head_curve(heads, layer, fewest == HeadCount{}, head_caution * size(StreamPlace::kInside) / mixed->weight(),
                     found);
    }
    Elimination neurons(inner.take(inside(step.index())), seen_writer(kMlpHalf, layer),
                        directions(StreamPlace::kLeaving), options.ridge, inside(step.index()));
    found.neurons = neuron_curve(neurons, layer, least, size(StreamPlace::kLeaving) / inner.weight());
    return to_json(found);
  };
  std::vector<LayerCurves> curves;
  for (const OrderedJson& layer : measure_layers(walk, "Measuring losses", calibration, &sensitivity, journal, measure))
    curves.push_back(curves_of(layer));
  return curves;
}

}  // namespace dynslice
