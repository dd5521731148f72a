#include "cli/verbs/depth_frame.h"

#include <chrono>
#include <cmath>
#include <iostream>

#include "cli/show/sizes.h"
#include "cli/show/written.h"
#include "cli/verbs/prepare_and_show.h"
#include "dynslice/depth/estimate.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/sizes.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/error.h"
#include "dynslice/walk/walk_estimate.h"

namespace dynslice::cli {
namespace {

OrderedJson describe_plan(const DepthPlan& plan) {
  OrderedJson json;
  json["layers"] = plan.layers;
  return json;
}

void report(const DepthRequest& options, const Found& found, OrderedJson json, const SizeChange& change,
            int64_t layers_before, const std::filesystem::path& out, double seconds, const PeakMemory& peak) {
  if (options.common.json) {
    json["wall_seconds"] = seconds;
    add_peaks(json, peak);
    json["output"] = out.string();
    std::cout << to_text(json);
    return;
  }
  if (!found.rows.empty()) {
    print_table(found.header, found.rows);
    std::cout << '\n';
  }
  if (!found.training_rows.empty()) {
    print_table(found.training_header, found.training_rows);
    std::cout << '\n';
  }
  const auto after = static_cast<int64_t>(found.plan.layers.size());
  print_sizes(change, {"layers", std::to_string(layers_before), std::to_string(after),
                       format_change(static_cast<double>(layers_before), static_cast<double>(after))});
  std::cout << '\n' << found.summary;
  print_size_notice(change);
  std::cout << format_duration(seconds) << ", peak memory " << format_bytes(peak.rss) << ".\n";
  print_written(options.common, out);
}

void search_and_write(const DepthRequest& options, const Method& method, const Search& in,
                      const std::filesystem::path& out, const std::shared_ptr<WorkFolder>& folder,
                      std::chrono::steady_clock::time_point start) {
  const Found found = method.search(in);
  const ModelConfig config = depth_config(in.checkpoint.config(), found.plan);
  const at::ScalarType dtype = output_dtype(options.out_dtype, in.checkpoint);
  const SizeChange change = size_change(in.checkpoint, config, dtype);
  CheckpointWriter writer(out, checkpoint_tensors(config, dtype), options.common.force, folder, in.journal.attached());
  write_depth(in.checkpoint, found.plan, dtype, writer, in.progress);
  write_companions(in.checkpoint, config, dtype, writer);
  OrderedJson json = describe_checkpoint("depth " + method.name, in.journal.job(), in.checkpoint, in.progress);
  json["plan"] = describe_plan(found.plan);
  json.update(found.json);
  json["layers"] = {{"before", in.layers()}, {"after", found.plan.layers.size()}};
  if (in.text != nullptr) json["calibration"] = describe(*in.text, options.calibration);
  add_sizes(json, change);
  json = whole_record(std::move(json));
  writer.write_text("dynslice.json", to_text(json));
  writer.commit([&] { in.journal.remove_files(); });
  const double seconds =
      in.journal.earlier_seconds() + std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report(options, found, json, change, in.layers(), out, seconds, peak_memory(in.compute));
}

}  // namespace

std::string join(const std::vector<int64_t>& numbers) {
  std::string text;
  for (const int64_t number : numbers) text += (text.empty() ? "" : ", ") + std::to_string(number);
  return text;
}

double perplexity_of(double loss) { return std::exp(loss); }

int64_t share_of_layers(double ratio, int64_t layers) { return std::llround(ratio * static_cast<double>(layers)); }

int64_t layers_to_go(const DepthRequest& options, int64_t layers) {
  if (!options.layers && !options.ratio)
    throw_error(ErrorKind::kUsage, "say how many layers go: --layers N, or --ratio 25%");
  const int64_t count = options.layers ? *options.layers : share_of_layers(*options.ratio, layers);
  if (count >= layers) {
    throw_error(ErrorKind::kUsage, "--layers ", count, ": the model has ", layers, " layers, and one must stay");
  }
  return count;
}

void run_method(DepthRequest options, TerminalProgress& progress,
                const std::function<Method(const Checkpoint& checkpoint)>& method_for) {
  const auto start = std::chrono::steady_clock::now();
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  const auto checkpoint = open_model(options.common, progress);
  check_depth(*checkpoint);
  const Method method = method_for(*checkpoint);
  const std::filesystem::path out = checkpoint_folder(options.output, options.common, *checkpoint, method.suffix);
  std::optional<LoadedText> text;
  if (method.samples > 0) {
    options.calibration.at_most = method.at_most && options.calibration.samples == 0;
    if (options.calibration.samples == 0) options.calibration.samples = method.samples;
    if (options.calibration.seqlen == 0 && method.seqlen > 0) options.calibration.seqlen = method.seqlen;
    text = load_windows(options.calibration, TextUse::kCalibration, options.common, *checkpoint, progress);
  }
  const double share = static_cast<double>(method.layers_left) / static_cast<double>(checkpoint->config().num_layers());
  const auto output_bytes =
      static_cast<uint64_t>(share * static_cast<double>(count_cost(checkpoint->config()).parameters)) *
      c10::elementSize(output_dtype(options.out_dtype, *checkpoint));
  const auto resources =
      prepare_or_show(options.common, *checkpoint, compute,
                      {"depth " + method.name,
                       [&](const ComputeOptions& with, int64_t) {
                         if (!text) return estimate_conversion(*checkpoint, output_bytes);
                         DepthUse use = method.use(text->windows);
                         use.output_bytes = output_bytes;
                         const auto search = estimate_depth(*checkpoint, with, amount_of(text->windows), use);
                         return method.training ? search + method.training(with, text->windows) : search;
                       },
                       0, out});
  if (!resources) return;
  compute = resources->compute;

  const OrderedJson run_description = describe_run(options.common, compute, *checkpoint);
  const auto folder = std::make_shared<WorkFolder>(CheckpointWriter::partial_folder(out));
  if (is_finished(options.common, out, *folder, run_description)) return;
  Journal journal(folder,
                  fingerprint(options.common, compute, *checkpoint, text ? &*text : nullptr, options.calibration),
                  run_description, journal_options(options.common));
  const Search search{*checkpoint, compute, text ? &*text : nullptr, journal, progress};
  with_journal(journal, options.common, [&] { search_and_write(options, method, search, out, folder, start); });
}

}  // namespace dynslice::cli
