#include "dynslice/train/sensitivity.h"

#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "aten.h"
#include "dynslice/tensor/second_moment.h"
#include "dynslice/train/objectives.h"
#include "dynslice/train/trainable_layer.h"
#include "dynslice/walk/head.h"

namespace dynslice {
namespace {

class Measuring {
 public:
  Measuring(const LayerWalk& walk, const TokenWindows& windows, const JournalPhase& journal)
      : walk_(walk), windows_(windows), journal_(journal), layers_(walk.config().num_layers()) {
    const int64_t width = walk.config().hidden_size;
    directions_ = at::zeros({layers_, 2, width, width}, at::TensorOptions().dtype(at::kFloat));
  }

  Sensitivity run(int64_t a_turn) {
    int64_t first = journal_.restore(state(), at::kCPU).value_or(0);
    ProgressTask progress(walk_.progress(), "Gradients of the loss", 3 * layers_ * (windows_.count - first), "windows");
    while (first < windows_.count) {
      const int64_t count = std::min(a_turn, windows_.count - first);
      run_turn(windows_.part(first, count), progress);
      first += count;
      journal_.save(first, windows_.count, state());
    }
    return result();
  }

 private:
  WalkState state() {
    WalkState state;
    state.keep("directions", directions_);
    return state;
  }

  void run_turn(const TokenWindows& windows, ProgressTask& progress) {
    std::vector<ResidualStream> entering = {walk_.embed(windows)};
    for (int64_t i = 0; i < layers_; ++i) {
      const DecoderLayer layer = load(i);
      ResidualStream leaving = entering.back().snapshot();
      leaving.transform([&](const at::Tensor& x) {
        check_interrupt();
        progress.advance(x.size(0));
        return forward_layer(layer, walk_.context(), x);
      });
      entering.push_back(std::move(leaving));
    }
    ResidualStream gradient = std::move(entering.back());
    entering.pop_back();
    to_gradient_of_loss(gradient, windows);
    for (int64_t i = layers_; i-- > 0;) {
      step_back(i, entering.back(), gradient, progress);
      entering.pop_back();
    }
  }

  DecoderLayer load(int64_t index) const {
    return load_decoder_layer(walk_.checkpoint(), index, walk_.options().dtype, walk_.options().device);
  }

  // The stream that leaves the last layer becomes the loss's gradient with respect to it.
  void to_gradient_of_loss(ResidualStream& stream, const TokenWindows& windows) const {
    const Head head = load_head(walk_);
    const at::Tensor matrix = output_matrix_of(head);
    int64_t first = 0;
    stream.transform([&](const at::Tensor& x) {
      check_interrupt();
      const at::Tensor targets = targets_of(windows, first, x.size(0)).to(x.device());
      first += x.size(0);
      at::Tensor gradient;
      head_loss(head, matrix, x.reshape({-1, x.size(-1)}), targets, 1.0, &gradient);
      return gradient.view(x.sizes());
    });
  }

  // The next token of every position of some windows; -1 behind the last.
  static at::Tensor targets_of(const TokenWindows& windows, int64_t first, int64_t count) {
    std::vector<int64_t> targets;
    for (int64_t w = first; w < first + count; ++w) {
      for (int64_t t = 1; t < windows.length; ++t)
        targets.push_back(windows.ids[static_cast<size_t>(w * windows.length + t)]);
      targets.push_back(-1);
    }
    return at::tensor(targets, at::kLong);
  }

  // From what leaves the layer to what enters it, with the sums of both places on the way.
  void step_back(int64_t index, const ResidualStream& entering, ResidualStream& gradient, ProgressTask& progress) {
    const DecoderLayer layer = load(index);
    SecondMoment inside(walk_.config().hidden_size, walk_.options().device);
    SecondMoment leaving(walk_.config().hidden_size, walk_.options().device);
    size_t chunk = 0;
    gradient.transform([&](const at::Tensor& g) {
      const at::Tensor whole = entering.read(chunk++);
      std::vector<at::Tensor> parts;
      for (int64_t w = 0; w < g.size(0); ++w) {
        check_interrupt();
        const auto [to_middle, to_entered] = back_through(layer, whole.narrow(0, w, 1), g.narrow(0, w, 1));
        leaving.add(g.narrow(0, w, 1));
        inside.add(to_middle);
        parts.push_back(to_entered);
        progress.advance(2);
      }
      return at::cat(parts);
    });
    const std::string where = "the loss's gradient at layer " + std::to_string(index);
    directions_[index][0].add_(inside.take(where).cpu());
    directions_[index][1].add_(leaving.take(where).cpu());
  }

  std::pair<at::Tensor, at::Tensor> back_through(const DecoderLayer& layer, const at::Tensor& entered,
                                                 const at::Tensor& gradient) const {
    const c10::AutoGradMode with_gradients(true);
    const at::Tensor x = entered.detach().requires_grad_(true);
    const LayerStreams streams = forward_trainable_halves(layer, walk_.context(), x, walk_.options().dtype);
    const auto found = torch::autograd::grad({streams.leaving}, {streams.inside, x}, {gradient});
    return {found[0], found[1]};
  }

  Sensitivity result() {
    const at::Tensor totals = directions_.diagonal(0, 2, 3).sum(2, false, at::kDouble).clamp_min(1e-30);
    directions_.div_(totals.to(at::kFloat).unsqueeze(-1).unsqueeze(-1));
    return {directions_, totals / static_cast<double>(windows_.tokens())};
  }

  const LayerWalk& walk_;
  const TokenWindows& windows_;
  const JournalPhase& journal_;
  const int64_t layers_;
  at::Tensor directions_;  // [L, 2, d, d] fp32, on the CPU
};

}  // namespace

int64_t sensitivity_turn(const ModelConfig& config, const TokenWindows& windows, int64_t turn_bytes) {
  const int64_t a_window = (config.num_layers() + 1) * windows.length * config.hidden_size * 4;
  return std::clamp<int64_t>(turn_bytes / std::max<int64_t>(1, a_window), 1, std::max<int64_t>(1, windows.count));
}

Sensitivity measure_sensitivity(const LayerWalk& walk, const TokenWindows& windows, int64_t turn_bytes,
                                const JournalPhase& journal) {
  // Tensors of inference mode never have gradients, whatever is asked of them later.
  const c10::InferenceMode with_gradients(false);
  const c10::NoGradGuard but_where_asked_for;
  return Measuring(walk, windows, journal).run(sensitivity_turn(walk.config(), windows, turn_bytes));
}

void SensitivitySource::join(WalkState& state) {
  state.keep("gradient directions", value_.directions);
  state.keep("gradient sizes", value_.sizes);
}

void SensitivitySource::measure_unless_there() {
  if (measure_ && !is_there()) value_ = measure_();
}

at::Tensor SensitivitySource::directions(int64_t layer, StreamPlace place, at::Device device) const {
  return is_there() ? value_.directions[layer][static_cast<int64_t>(place)].to(device) : at::Tensor();
}

double SensitivitySource::size(int64_t layer, StreamPlace place) const {
  return is_there() ? value_.sizes[layer][static_cast<int64_t>(place)].item<double>() : 1.0;
}

}  // namespace dynslice
