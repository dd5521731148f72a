#include "dynslice/jobs/quantize.h"

#include <string>
#include <vector>

#include "cli/show/outcome.h"
#include "cli/show/sizes.h"
#include "cli/show/terminal.h"
#include "cli/show/written.h"
#include "cli/verbs/verbs.h"

namespace dynslice::cli {
namespace {

// "0-3, 7".
std::string spans_of(const std::vector<int64_t>& layers) {
  std::string text;
  for (size_t first = 0; first < layers.size();) {
    size_t last = first;
    while (last + 1 < layers.size() && layers[last + 1] == layers[last] + 1) ++last;
    text += (text.empty() ? "" : ", ") + span_of(layers[first], layers[last]);
    first = last + 1;
  }
  return text;
}

void print_levels(std::ostream& out, const std::vector<QuantLevel>& levels) {
  std::vector<std::vector<std::string>> rows;
  for (const QuantLevel& level : levels) {
    std::string formats;
    for (const std::string& format : level.formats) formats += (formats.empty() ? "" : "; ") + format;
    rows.push_back({std::to_string(level.bits), std::to_string(level.layers.size()), spans_of(level.layers), formats});
  }
  print_table(out, {"bits", "layers", "which", "stored as"}, rows);
}

void print(std::ostream& out, const QuantizedModel& model, const QuantizeRequest& request) {
  print_levels(out, model.levels);
  const AverageBits& average = model.average_bits;
  out << "\nBits a weight: " << format_fixed(average.codes, 2) << "; with scales "
      << format_fixed(average.with_scales, 2);
  if (!request.fake_quant) {
    out << "; embedding, head and norms included " << format_fixed(average.of_all, 2);
  }
  const uint64_t before = model.source.bytes_before, after = model.bytes_after;
  out << ".\n"
      << format_bytes(before) << " before, " << format_bytes(after) << " after ("
      << format_change(static_cast<double>(before), static_cast<double>(after)) << ").\n";
  if (request.fake_quant)
    out << "The values are quantized and stored whole: without --fake-quant the folder is smaller.\n";
  print_size_notice(out, model.source);
  out << format_duration(model.seconds) << ", peak memory " << format_bytes(model.peak.rss) << ".\n";
  print_written(out, request.common, model.output);
}

// `cell` gives the text of a point of a curve.
template <typename Cell>
void print_points(std::ostream& out, const std::vector<SweepCurve>& curves, const std::string& title,
                  const Cell& cell) {
  std::vector<std::string> header = {title};
  for (const SweepCurve& curve : curves) header.push_back(curve.name);
  std::vector<std::vector<std::string>> rows;
  for (size_t i = 0; i < curves.front().shares.size(); ++i) {
    rows.push_back({format_percent(curves.front().shares[i])});
    for (const SweepCurve& curve : curves) rows.back().push_back(cell(curve, i));
  }
  print_table(out, header, rows);
}

void print(std::ostream& out, const QuantSweep& sweep) {
  const std::string share = "layers at " + std::to_string(sweep.levels.back()) + " bits";
  print_points(out, sweep.curves, share,
               [](const SweepCurve& curve, size_t i) { return format_fixed(curve.perplexities[i], 2); });
  for (size_t task = 0; task < sweep.tasks.size(); ++task) {
    out << "\nAccuracy, " << sweep.tasks[task] << ", %:\n";
    print_points(out, sweep.curves, share, [task](const SweepCurve& curve, size_t i) {
      return format_fixed(100 * curve.accuracies[i][task], 1);
    });
  }
  out << "\nUp to 5 % above the perplexity of " << sweep.levels.front() << " bits everywhere:";
  for (size_t i = 0; i < sweep.curves.size(); ++i) {
    const SweepCurve& curve = sweep.curves[i];
    out << (i == 0 ? " " : "; ") << curve.name << ' ' << format_percent(curve.share_within_tolerance(), 0);
  }
  out << " of the layers.\n"
      << format_duration(sweep.seconds) << ", peak memory " << format_bytes(sweep.peak.rss) << ".\nWritten to "
      << sweep.output.string() << " and " << sweep.picture.string() << ".\n";
}

}  // namespace

void run(const QuantizeRequest& request, TerminalProgress& progress, std::ostream& out) {
  present(out, dynslice::run(request, progress), request.common, [&](const QuantizeResult& result) {
    if (const auto* sweep = std::get_if<QuantSweep>(&result)) return print(out, *sweep);
    print(out, std::get<QuantizedModel>(result), request);
  });
}

}  // namespace dynslice::cli
