#include "dynslice/quantize/quantize.h"

#include <algorithm>

#include "aten.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/quantize/quant_plan.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/kernels.h"
#include "dynslice/tensor/second_moment.h"
#include "dynslice/walk/journaled_walk.h"
#include "quantize/layer_sink.h"

namespace dynslice {
namespace {

// What goes wrong with a matrix says in which layer.
template <typename Quantize>
QuantizedMatrix with_place(int64_t layer, const Quantize& quantize) {
  try {
    return quantize();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kBadInput) throw;
    throw_error(ErrorKind::kBadInput, "layer ", layer, ": ", error.what());
  }
}

// So many that they stay in the cores' caches from when they are read until their codes are packed.
int64_t rows_at_a_time(const LinearShape& matrix) {
  constexpr int64_t kValues = int64_t{1} << 19, kRows = 32;
  return std::max(kValues / matrix.columns / kRows, int64_t{1}) * kRows;
}

class GptqWalk {
 public:
  GptqWalk(const LayerWalk& walk, const FormatOf& format_of, const GptqOptions& options, const MatrixSink& sink,
           const JournalPhase& journal)
      : walk_(walk), format_of_(format_of), options_(options), sink_(sink), journal_(journal) {}

  void run(const TokenWindows& windows) {
    stream_ = walk_.empty_stream();
    run_journaled(walk_, journal_,
                  {.task = "Quantizing",
                   .tokens = windows.tokens(),
                   .state = [&] { return state(); },
                   .begin = [&] { stream_ = walk_.embed(windows); },
                   .visit = [&](LayerStep& step) { visit(step); },
                   .weights = at::kFloat});
  }

 private:
  WalkState state() {
    WalkState state;
    state.keep("stream", stream_);
    return state;
  }

  // The weights come in fp32; each is quantized from there and computes in the dtype of the forward from then on.
  void visit(LayerStep& step) {
    LayerSink sink(walk_.config(), step.index(), sink_);
    layer_ = with_dtype(step.layer, walk_.options().dtype);
    weights_ = &step.layer;
    for (const HalfLayer& half : kHalfLayers) {
      if (half.is_in(step.layer.shape)) quantize_half(half, step, sink);
    }
  }

  void quantize_half(const HalfLayer& half, LayerStep& step, LayerSink& sink) {
    const std::string name = name_of(half, step.index());
    const auto input = [&](const at::Tensor& x) { return half_input(half, layer_, step.context, x); };
    const auto inner = [&](const at::Tensor& x) { return half_inner(half, layer_, step.context, x); };
    fit(step, half.reads, input, stream_, "what " + name + " reads", 0.125, sink);
    if (half.which == Half::kMlp) {
      fit(step, half.writes, inner, stream_, "what is inside " + name, 0.25, sink);
      step.transform(stream_, [&](const at::Tensor& x) { return forward_half(half, layer_, step.context, x); }, 4);
      return;
    }
    // What attention mixes is kept: it is needed for the moment and, behind that, for the output.
    ResidualStream mixed = stream_.snapshot();
    step.transform(mixed, inner, 8);
    fit(step, half.writes, [](const at::Tensor& x) { return x; }, mixed, "what is inside " + name, 0, sink);
    size_t chunk = 0;
    step.transform(
        stream_, [&](const at::Tensor& x) { return leave_half(half, layer_, step.context, mixed.read(chunk++), x); },
        8);
  }

  // Quantizes one linear by what it reads of the stream.
  template <typename ReadsOf>
  void fit(const LayerStep& step, Linear DecoderLayer::* linear, const ReadsOf& reads, const ResidualStream& stream,
           const std::string& where, double share, LayerSink& sink) {
    const at::Tensor weight = (weights_->*linear).weight.cpu();
    (weights_->*linear).weight.reset();
    const QuantFormat format = format_of_(step.index(), weight.size(1));
    const QuantizedMatrix matrix = with_place(step.index(), [&] {
      if (is_fine(format)) return round_to_nearest(weight, format);
      SecondMoment moment(weight.size(1), walk_.options().device);
      stream.visit([&](const at::Tensor& x) { moment.add(reads(x).to(at::kFloat)); });
      const Gptq gptq(moment.take(where), grid_unit(format, weight.size(1)), options_);
      return gptq.quantize(weight, format);
    });
    step.advance(static_cast<int64_t>(share * static_cast<double>(stream_.tokens())));
    (layer_.*linear).weight = matrix.values().to(walk_.options().device, walk_.options().dtype);
    sink.write(matrix);
  }

  const LayerWalk& walk_;
  const FormatOf& format_of_;
  const GptqOptions& options_;
  const MatrixSink& sink_;
  const JournalPhase& journal_;
  ResidualStream stream_;
  DecoderLayer layer_;               // with the matrices that are quantized already
  DecoderLayer* weights_ = nullptr;  // as they were, in fp32
};

}  // namespace

std::vector<LinearShape> linear_shapes(const ModelConfig& config, int64_t layer) {
  const std::string prefix = layer_tensor_name(layer, ""), suffix = ".weight";
  std::vector<LinearShape> shapes;
  for (const OutputTensor& weight : linear_weights(config, layer, at::kFloat)) {
    const std::string& name = weight.name;
    shapes.push_back(
        {name.substr(prefix.size(), name.size() - prefix.size() - suffix.size()), weight.shape[0], weight.shape[1]});
  }
  return shapes;
}

void check_formats(const ModelConfig& config, const FormatOf& format_of) {
  for (int64_t layer = 0; layer < config.num_layers(); ++layer) {
    for (const LinearShape& matrix : linear_shapes(config, layer)) {
      check_format(format_of(layer, matrix.columns), matrix.columns,
                   "layer " + std::to_string(layer) + ", " + matrix.module);
    }
  }
}

void quantize_by_rounding(const Checkpoint& checkpoint, const FormatOf& format_of, const MatrixSink& sink,
                          ProgressSink& progress, const JournalPhase& journal) {
  const ModelConfig& config = checkpoint.config();
  const int64_t first = journal.restore({}, at::kCPU).value_or(0);
  int64_t weights = 0;
  for (int64_t layer = first; layer < config.num_layers(); ++layer) weights += layer_weights(config, layer);
  ProgressTask task(progress, "Rounding", weights, "weights");
  for (int64_t layer = first; layer < config.num_layers(); ++layer) {
    for (const LinearShape& matrix : linear_shapes(config, layer)) {
      const std::string name = layer_tensor_name(layer, matrix.module + ".weight");
      const QuantFormat format = format_of(layer, matrix.columns);
      const int64_t step = rows_at_a_time(matrix);
      for (int64_t row = 0; row < matrix.rows; row += step) {
        const int64_t end = std::min(row + step, matrix.rows);
        const at::Tensor weight = checkpoint.load_rows(name, {matrix.rows, matrix.columns}, row, end, at::kFloat);
        sink({layer, matrix.module, row, with_place(layer, [&] { return round_to_nearest(weight, format); })});
        task.advance((end - row) * matrix.columns);
      }
    }
    journal.save(layer + 1, config.num_layers(), {});
  }
}

void quantize_by_gptq(const LayerWalk& walk, const TokenWindows& windows, const FormatOf& format_of,
                      const GptqOptions& options, const MatrixSink& sink, const JournalPhase& journal) {
  GptqWalk(walk, format_of, options, sink, journal).run(windows);
}

}  // namespace dynslice
