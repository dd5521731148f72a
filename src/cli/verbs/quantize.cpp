#include "dynslice/quantize/quantize.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <set>

#include "cli/show/sizes.h"
#include "cli/show/written.h"
#include "cli/verbs/prepare_and_show.h"
#include "cli/verbs/quantize_sweep.h"
#include "cli/verbs/verbs.h"
#include "dynslice/checkpoint/tensor_copy.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/quantize_gguf.h"
#include "dynslice/jobs/quantizing.h"
#include "dynslice/jobs/sizes.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/quantize/estimate.h"
#include "dynslice/quantize/gguf_blocks.h"
#include "dynslice/quantize/packed_checkpoint.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/score/estimate.h"
#include "dynslice/support/error.h"

namespace dynslice::cli {
namespace {

namespace fs = std::filesystem;

// Bits of a weight on average.
struct AverageBits {
  double codes = 0;        // of the layers' matrices
  double with_scales = 0;  // the same, scales and zero points included
  double of_all = 0;       // of all parameters, embedding, head and norms included
};

// `bytes` are those of a GGUF file's tensors.
AverageBits average_bits_of(const Quantizing& in, const QuantPlan& plan, const FormatOf& format_of, uint64_t bytes) {
  const ModelConfig& config = in.config();
  double stored = 0, weights = 0;
  for (int64_t layer = 0; layer < config.num_layers(); ++layer) {
    for (const LinearShape& matrix : linear_shapes(config, layer)) {
      const auto count = static_cast<double>(matrix.rows * matrix.columns);
      stored += count * stored_bits(format_of(layer, matrix.columns), matrix.columns);
      weights += count;
    }
  }
  const auto all = static_cast<double>(count_cost(config).parameters);
  const double other = (all - weights) * 8.0 * static_cast<double>(c10::elementSize(in.dtype()));
  const double whole = in.options.gguf ? 8.0 * static_cast<double>(bytes) : stored + other;
  return {average_bits(config, plan.bits), stored / weights, whole / all};
}

uint64_t bytes_of(const std::vector<OutputTensor>& tensors) {
  uint64_t bytes = 0;
  for (const OutputTensor& tensor : tensors) bytes += count_bytes(tensor);
  return bytes;
}

std::vector<OutputTensor> output_tensors(const Quantizing& in, const FormatOf& format_of) {
  if (in.options.gguf) return block_tensors(in.config(), format_of);
  return in.options.fake_quant ? checkpoint_tensors(in.config(), in.dtype())
                               : packed_tensors(in.config(), in.dtype(), format_of);
}

void quantize_layers(const Quantizing& in, const FormatOf& format_of, CheckpointWriter& writer, Journal& journal,
                     ProgressSink& progress) {
  const MatrixSink sink = [&](const MatrixRows& rows) {
    const std::string name = layer_tensor_name(rows.layer, rows.module) + ".weight";
    if (in.options.gguf) {
      writer.write_rows(name, rows.first_row, rows.matrix.blocks);
    } else if (in.options.fake_quant) {
      writer.write_rows(name, rows.first_row, rows.matrix.values());
    } else {
      write_packed(rows, writer);
    }
  };
  const JournalPhase phase(journal, "quantizing");
  if (!in.by_gptq()) return quantize_by_rounding(in.checkpoint, format_of, sink, progress, phase);
  const LayerWalk walk(in.checkpoint, in.compute, in.calibration->length, progress);
  quantize_by_gptq(walk, *in.calibration, format_of, in.gptq(), sink, phase);
}

// Embedding, head, norms and biases.
void copy_the_rest(const Quantizing& in, CheckpointWriter& writer, ProgressSink& progress) {
  copy_tensors(
      in.checkpoint, checkpoint_tensors(in.config(), in.dtype()),
      [](const std::string& name) { return !is_linear_weight(name); }, "Copying what stays", writer, progress);
}

std::string layers_with(const QuantPlan& plan, int bits) {
  std::string text;
  for (size_t first = 0; first < plan.bits.size(); ++first) {
    if (plan.bits[first] != bits) continue;
    size_t last = first;
    while (last + 1 < plan.bits.size() && plan.bits[last + 1] == bits) ++last;
    text += (text.empty() ? "" : ", ") + span_of(static_cast<int64_t>(first), static_cast<int64_t>(last));
    first = last;
  }
  return text;
}

// How matrices of these layers are stored: "Q5_0, Q4_K".
std::string formats_with(const ModelConfig& config, const QuantPlan& plan, int bits, const FormatOf& format_of) {
  std::set<std::string> formats;
  for (int64_t layer = 0; layer < config.num_layers(); ++layer) {
    if (plan.bits[static_cast<size_t>(layer)] != bits) continue;
    for (const LinearShape& matrix : linear_shapes(config, layer))
      formats.insert(describe(format_of(layer, matrix.columns)));
  }
  std::string text;
  for (const std::string& format : formats) text += (text.empty() ? "" : "; ") + format;
  return text;
}

// `record` is what the checkpoint says of itself.
void print(const Quantizing& in, const QuantPlanned& planned, const FormatOf& format_of, const OrderedJson& record) {
  const std::set<int, std::greater<>> levels(planned.plan.bits.begin(), planned.plan.bits.end());
  std::vector<std::vector<std::string>> rows;
  for (const int bits : levels) {
    const auto count = std::ranges::count(planned.plan.bits, bits);
    rows.push_back({std::to_string(bits), std::to_string(count), layers_with(planned.plan, bits),
                    formats_with(in.config(), planned.plan, bits, format_of)});
  }
  print_table({"bits", "layers", "which", "stored as"}, rows);
  const auto bits = [&](const char* key) { return format_fixed(record.at("average_bits").at(key).get<double>(), 2); };
  const auto before = record.at("bytes").at("before").get<uint64_t>(),
             after = record.at("bytes").at("after").get<uint64_t>();
  std::cout << "\nBits a weight: " << bits("codes") << "; with scales " << bits("with_scales");
  if (!in.options.fake_quant) std::cout << "; embedding, head and norms included " << bits("of_all_parameters");
  std::cout << ".\n"
            << format_bytes(before) << " before, " << format_bytes(after) << " after ("
            << format_change(static_cast<double>(before), static_cast<double>(after)) << ").\n";
  if (in.options.fake_quant)
    std::cout << "The values are quantized and stored whole: without --fake-quant the folder is smaller.\n";
}

// What is written where, and what is told of the inputs.
struct Destination {
  const Ranking& ranking;
  const LoadedText* text;  // null when none is needed
  fs::path out;
  fs::path folder;  // of the checkpoint: `out`, or where the blocks of a GGUF file wait
  std::shared_ptr<WorkFolder> work;
  std::chrono::steady_clock::time_point start;
};

OrderedJson describe_result(const Quantizing& in, const Destination& to, const QuantPlanned& planned,
                            const FormatOf& format_of, const OrderedJson& run_description, ProgressSink& progress) {
  const uint64_t bytes_after = in.options.gguf ? gguf_tensor_bytes(in.checkpoint, gguf_options(in, format_of))
                                               : bytes_of(output_tensors(in, format_of));
  const AverageBits average = average_bits_of(in, planned.plan, format_of, bytes_after);
  OrderedJson json = describe_checkpoint("quantize " + in.options.method, run_description, in.checkpoint, progress);
  json["plan"] = to_json(planned.plan);
  if (planned.scores) json["scores"] = to_json(*planned.scores);
  json["format"] = in.options.gguf ? "gguf" : in.options.fake_quant ? "values" : "pack-quantized";
  json["average_bits"] = {
      {"codes", average.codes}, {"with_scales", average.with_scales}, {"of_all_parameters", average.of_all}};
  if (to.text != nullptr) {
    json["calibration"] = describe(*to.text, in.options.calibration);
    json["calibration"]["windows"] = in.calibration->count;
    if (in.held_out->count > 0) json["calibration"]["search_windows"] = in.held_out->count;
  }
  const SizeChange change = size_change(in.checkpoint, in.config(), in.dtype());
  json["bytes"] = {{"before", change.bytes_before}, {"after", bytes_after}};
  return whole_record(std::move(json));
}

void report(const Quantizing& in, const Destination& to, const QuantPlanned& planned, const FormatOf& format_of,
            OrderedJson json, double seconds) {
  const PeakMemory peak = peak_memory(in.compute);
  if (in.options.common.json) {
    json["wall_seconds"] = seconds;
    add_peaks(json, peak);
    json["output"] = to.out.string();
    std::cout << to_text(json);
    return;
  }
  print(in, planned, format_of, json);
  print_size_notice(size_change(in.checkpoint, in.config(), in.dtype()));
  std::cout << format_duration(seconds) << ", peak memory " << format_bytes(peak.rss) << ".\n";
  print_written(in.options.common, to.out);
}

void quantize_to_folder(const Quantizing& in, const Destination& to, Journal& journal, ProgressSink& progress) {
  const FormatRule rule = format_rule(in);
  const auto phase = [&](const std::string& name) { return JournalPhase(journal, name); };
  const QuantPlanned planned = make_quant_plan(in, to.ranking, rule, phase, progress);
  const FormatOf format_of = formats_of(rule, planned.plan);
  // The blocks of a GGUF file are read back from one file, however large.
  const uint64_t shard_bytes = in.options.gguf ? UINT64_MAX : CheckpointWriter::kShardBytes;
  CheckpointWriter writer(to.folder, output_tensors(in, format_of), in.options.common.force, to.work,
                          journal.attached(), shard_bytes);
  journal.attach([&] { return writer.written(); });
  quantize_layers(in, format_of, writer, journal, progress);
  if (!in.options.gguf) {
    if (!in.options.fake_quant) write_packed_shapes(in.config(), writer);
    copy_the_rest(in, writer, progress);
    write_companions(in.checkpoint, in.config(), in.dtype(), writer,
                     in.options.fake_quant ? OrderedJson() : describe_packing(in.config(), format_of));
  }
  const OrderedJson json = describe_result(in, to, planned, format_of, journal.job(), progress);
  writer.write_text("dynslice.json", to_text(json));
  writer.commit([&] { journal.remove_files(); });
  if (in.options.gguf) write_gguf(in, format_of, to.folder, to.out, json, progress);
  const double seconds =
      journal.earlier_seconds() + std::chrono::duration<double>(std::chrono::steady_clock::now() - to.start).count();
  report(in, to, planned, format_of, json, seconds);
}

// Ends a run that was stopped when all blocks were there, or the GGUF file itself. True when there is nothing left to
// do.
bool finish_gguf(const Quantizing& in, const Destination& to, const OrderedJson& run_description,
                 ProgressSink& progress) {
  const bool resumes = in.options.common.resume && !Journal::is_in(to.work->path());
  if (auto record = resumes ? gguf_record(to.out, run_description) : std::nullopt) {
    remove_blocks(to.folder);
    show(tell_finished(to.out, std::move(*record)), in.options.common.json);
    return true;
  }
  check_output(to.out, in.options.common.force);
  std::error_code error;
  if (!fs::exists(to.folder, error) || in.options.common.force) return false;
  const auto record = resumes ? finished_earlier(to.folder, run_description) : std::nullopt;
  if (!record) {
    throw_error(ErrorKind::kUsage, to.folder.string(),
                ": was left by another run that had not written its GGUF file; go on "
                "with that command and --resume, or drop it with --force");
  }
  QuantPlanned planned;
  planned.plan =
      parse_quant_plan(Json(record->at("plan")), (to.folder / "dynslice.json").string() + ": plan", in.config());
  const FormatOf format_of = formats_of(format_rule(in), planned.plan);
  write_gguf(in, format_of, to.folder, to.out, *record, progress);
  report(in, to, planned, format_of, *record,
         std::chrono::duration<double>(std::chrono::steady_clock::now() - to.start).count());
  return true;
}

std::string name_suffix(const QuantizeRequest& options) {
  std::string suffix = "quantized";
  if (options.plan.empty()) {
    for (const int bits : levels_of(options)) suffix += "-" + std::to_string(bits);
  }
  return options.gguf ? suffix + ".gguf" : suffix;
}

// The result's place, checked.
fs::path output_place(const QuantizeRequest& options, const Checkpoint& checkpoint) {
  const fs::path out = checkpoint_folder(options.output, options.common, checkpoint, name_suffix(options));
  if (options.gguf) check_output_file(out);
  return out;
}

// Of a GGUF file the blocks are there twice while it is written.
uint64_t largest_output(const Quantizing& in, const FormatOf& format_of) {
  const uint64_t bytes = bytes_of(output_tensors(in, format_of));
  return in.options.gguf ? bytes + gguf_tensor_bytes(in.checkpoint, gguf_options(in, format_of)) : bytes;
}

// The largest that the output can become: all layers at the highest level.
ResourceEstimate estimate(const Quantizing& in, const Ranking& ranking, const ComputeOptions& compute) {
  QuantPlan largest;
  largest.bits.assign(static_cast<size_t>(in.config().num_layers()),
                      in.options.plan.empty() ? levels_of(in.options).front() : 8);
  const uint64_t output_bytes = largest_output(in, formats_of(format_rule(in), largest));
  const TextAmount text = in.calibration != nullptr ? amount_of(*in.calibration) : TextAmount{};
  ResourceEstimate all = estimate_quantize(in.checkpoint, compute, text, in.by_gptq(), output_bytes);
  if (!needs_order(in.options)) return all;
  if (ranking.is_searched) {
    const int64_t layers = in.config().num_layers();
    return estimate_plan_losses(in.checkpoint, compute, in.by_gptq() ? text : TextAmount{}, amount_of(*in.held_out),
                                {layers + 1, in.options.search_rounds, static_cast<double>(layers) / 2}) +
           all;
  }
  return ranking.needs_text() ? estimate_score(in.checkpoint, compute, text) + all : all;
}

}  // namespace

void run(const QuantizeRequest& options, TerminalProgress& progress) {
  const auto start = std::chrono::steady_clock::now();
  check_levels(options);
  if (!options.gguf && (!options.types.empty() || !options.embeddings.empty()))
    throw_error(ErrorKind::kUsage, options.types.empty() ? "--embeddings" : "--types", ": belongs to --gguf");
  for (const char* of_gptq : {"--damping", "--natural-order"}) {
    if (options.method != "gptq" && options.common.is_given(of_gptq))
      throw_error(ErrorKind::kUsage, of_gptq, ": belongs to --method gptq, not to ", options.method);
  }
  if (!options.sweep.empty()) return run_sweep(options, progress);
  const Ranking ranking = needs_order(options) ? parse_ranking(options.order) : Ranking{};
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  const auto checkpoint = open_model(options.common, progress);
  const fs::path out = output_place(options, *checkpoint);
  std::optional<LoadedText> text;
  TokenWindows calibration, held_out;
  Quantizing in{options, compute, *checkpoint};
  if (!options.plan.empty()) {
    check_formats(checkpoint->config(),
                  formats_of(format_rule(in), read_quant_plan(options.plan, checkpoint->config())));
  }
  if (in.by_gptq() || ranking.needs_text()) {
    const int64_t searched = ranking.is_searched ? options.search_samples : 0;
    TextOptions wanted = options.calibration;
    wanted.samples = (wanted.samples > 0 ? wanted.samples : 32) + searched;
    text = load_windows(wanted, TextUse::kCalibration, options.common, *checkpoint, progress);
    calibration = text->windows.part(0, text->windows.count - searched);
    held_out = text->windows.part(text->windows.count - searched, searched);
    if (ranking.is_searched && held_out.length < 2)
      throw_error(ErrorKind::kUsage, "--seqlen ", held_out.length,
                  ": a window of one token has no next one to measure");
    in.calibration = &calibration;
    in.held_out = &held_out;
  }
  const auto resources = prepare_or_show(
      options.common, *checkpoint, compute,
      {"quantize", [&](const ComputeOptions& with, int64_t) { return estimate(in, ranking, with); }, 0, out});
  if (!resources) return;
  compute = resources->compute;

  const OrderedJson run_description = describe_run(options.common, compute, *checkpoint);
  const fs::path folder = options.gguf ? fs::path(out).concat(".blocks") : out;
  const auto work = std::make_shared<WorkFolder>(CheckpointWriter::partial_folder(folder));
  const Destination to{ranking, text ? &*text : nullptr, out, folder, work, start};
  const bool is_done = options.gguf ? finish_gguf(in, to, run_description, progress)
                                    : is_finished(options.common, out, *work, run_description);
  if (is_done) return;
  if (options.gguf) check_gguf_export(*checkpoint, out, options.common.force);
  OrderedJson fingerprints =
      fingerprint(options.common, compute, *checkpoint, text ? &*text : nullptr, options.calibration);
  add_file(fingerprints, "--order", ranking.file);
  add_file(fingerprints, "--plan", options.plan);
  Journal journal(work, fingerprints, run_description, journal_options(options.common));
  with_journal(journal, options.common, [&] { quantize_to_folder(in, to, journal, progress); });
}

}  // namespace dynslice::cli
