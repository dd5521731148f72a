#include "dynslice/jobs/quantize.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <set>
#include <utility>

#include "dynslice/checkpoint/tensor_copy.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/quantize/estimate.h"
#include "dynslice/quantize/gguf_blocks.h"
#include "dynslice/quantize/packed_checkpoint.h"
#include "dynslice/quantize/quantize.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/score/estimate.h"
#include "dynslice/support/error.h"
#include "jobs/model_card.h"
#include "jobs/quantize_gguf.h"
#include "jobs/quantize_sweep.h"
#include "jobs/quantizing.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

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

uint64_t tensor_bytes(const std::vector<OutputTensor>& tensors) {
  uint64_t bytes = 0;
  for (const OutputTensor& tensor : tensors) bytes += count_bytes(tensor);
  return bytes;
}

std::vector<OutputTensor> quantized_tensors(const Quantizing& in, const FormatOf& format_of) {
  if (in.options.gguf) return block_tensors(in.config(), format_of);
  if (in.options.fake_quant) return output_tensors(in.checkpoint, in.config(), in.dtype());
  std::vector<OutputTensor> tensors = packed_tensors(in.config(), in.dtype(), format_of);
  for (OutputTensor& other : other_tensors(in.checkpoint)) tensors.push_back(std::move(other));
  return tensors;
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

// What is written where, and what is told of the inputs.
struct QuantizeOutput {
  const Ranking& ranking;
  const LoadedText* text;  // null when none is needed
  fs::path out;
  fs::path folder;  // of the checkpoint: `out`, or where the blocks of a GGUF file wait
  std::shared_ptr<WorkFolder> work;
};

OrderedJson describe_quantizing(const Quantizing& in, const QuantizeOutput& to, const QuantPlanned& planned,
                                const FormatOf& format_of, const OrderedJson& run_description, ProgressSink& progress) {
  const uint64_t bytes_after = in.options.gguf ? gguf_tensor_bytes(in.checkpoint, gguf_options(in, format_of))
                                               : tensor_bytes(quantized_tensors(in, format_of));
  const AverageBits average = average_bits_of(in, planned.plan, format_of, bytes_after);
  OrderedJson json =
      describe_checkpoint("quantize " + name_of(in.options.method), run_description, in.checkpoint, progress);
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

std::vector<QuantLevel> levels_in(const ModelConfig& config, const QuantPlan& plan, const FormatOf& format_of) {
  const std::set<int, std::greater<>> all(plan.bits.begin(), plan.bits.end());
  std::vector<QuantLevel> levels;
  for (const int bits : all) {
    QuantLevel& level = levels.emplace_back();
    level.bits = bits;
    std::set<std::string> formats;
    for (int64_t layer = 0; layer < config.num_layers(); ++layer) {
      if (plan.bits[static_cast<size_t>(layer)] != bits) continue;
      level.layers.push_back(layer);
      for (const LinearShape& matrix : linear_shapes(config, layer))
        formats.insert(describe(format_of(layer, matrix.columns)));
    }
    level.formats.assign(formats.begin(), formats.end());
  }
  return levels;
}

// `record` is what the checkpoint says of itself: by this run, or by one that was stopped behind it.
QuantizedModel quantized_model(const Quantizing& in, const QuantizeOutput& to, const QuantPlan& plan,
                               const FormatOf& format_of, OrderedJson record) {
  const OrderedJson& average = record.at("average_bits");
  QuantizedModel result;
  result.plan = plan;
  result.levels = levels_in(in.config(), plan, format_of);
  result.average_bits = {average.at("codes").get<double>(), average.at("with_scales").get<double>(),
                         average.at("of_all_parameters").get<double>()};
  result.source = size_change(in.checkpoint, in.config(), in.dtype());
  result.bytes_after = record.at("bytes").at("after").get<uint64_t>();
  result.record = std::move(record);
  result.output = to.out;
  return result;
}

QuantizedModel quantize_to_folder(const Quantizing& in, const QuantizeOutput& to, Journal& journal,
                                  ProgressSink& progress) {
  const FormatRule rule = format_rule(in);
  const auto phase = [&](const std::string& name) { return JournalPhase(journal, name); };
  const QuantPlanned planned = make_quant_plan(in, to.ranking, rule, phase, progress);
  const FormatOf format_of = formats_of(rule, planned.plan);
  // The blocks of a GGUF file are read back from one file, however large.
  const uint64_t shard_bytes = in.options.gguf ? UINT64_MAX : CheckpointWriter::kShardBytes;
  CheckpointWriter writer(to.folder, quantized_tensors(in, format_of), in.options.common.force, to.work,
                          journal.attached(), shard_bytes);
  journal.attach([&] { return writer.written(); });
  quantize_layers(in, format_of, writer, journal, progress);
  if (!in.options.gguf) {
    if (!in.options.fake_quant) write_packed_shapes(in.config(), writer);
    copy_the_rest(in, writer, progress);
    write_companions(in.checkpoint, in.config(), in.dtype(), writer, progress,
                     in.options.fake_quant ? OrderedJson() : describe_packing(in.config(), format_of));
  }
  OrderedJson record = describe_quantizing(in, to, planned, format_of, journal.job(), progress);
  write_record({CardKind::kQuantized, to.out, in.checkpoint, in.config()}, record, writer);
  writer.commit([&] { journal.remove_files(); });
  if (in.options.gguf) write_gguf(in, format_of, to.folder, to.out, record, progress);
  return quantized_model(in, to, planned.plan, format_of, std::move(record));
}

// Ends a run that was stopped when all blocks were there, or the GGUF file itself. Nothing when there is more to do.
std::optional<Outcome<QuantizeResult>> finish_gguf(const Quantizing& in, const QuantizeOutput& to,
                                                   const OrderedJson& run_description, ProgressSink& progress) {
  const bool resumes = in.options.common.resume && !Journal::is_in(to.work->path());
  if (auto record = resumes ? gguf_record(to.out, run_description) : std::nullopt) {
    remove_blocks(to.folder);
    return tell_finished(to.out, std::move(*record));
  }
  check_output(to.out, in.options.common.force);
  std::error_code error;
  if (!fs::exists(to.folder, error) || in.options.common.force) return std::nullopt;
  const auto record = resumes ? finished_earlier(to.folder, run_description) : std::nullopt;
  if (!record) {
    throw_error(ErrorKind::kUsage, to.folder.string(),
                ": was left by another run that had not written its GGUF file; go on "
                "with that command and --resume, or drop it with --force");
  }
  const QuantPlan plan =
      parse_quant_plan(Json(record->at("plan")), (to.folder / "dynslice.json").string() + ": plan", in.config());
  const FormatOf format_of = formats_of(format_rule(in), plan);
  write_gguf(in, format_of, to.folder, to.out, *record, progress);
  return QuantizeResult(quantized_model(in, to, plan, format_of, *record));
}

std::string quantized_suffix(const QuantizeRequest& options) {
  std::string suffix = "quantized";
  if (options.plan.empty()) {
    for (const int bits : levels_of(options)) suffix += "-" + std::to_string(bits);
  }
  return options.gguf ? suffix + ".gguf" : suffix;
}

// The result's place, checked.
fs::path quantized_place(const QuantizeRequest& options, const Checkpoint& checkpoint) {
  const fs::path out = checkpoint_folder(options.output, options.common, checkpoint, quantized_suffix(options));
  if (options.gguf) check_output_file(out);
  return out;
}

// Of a GGUF file the blocks are there twice while it is written.
uint64_t largest_output(const Quantizing& in, const FormatOf& format_of) {
  const uint64_t bytes = tensor_bytes(quantized_tensors(in, format_of));
  return in.options.gguf ? bytes + gguf_tensor_bytes(in.checkpoint, gguf_options(in, format_of)) : bytes;
}

// The largest that the output can become: all layers at the highest level.
ResourceEstimate estimate_quantizing(const Quantizing& in, const Ranking& ranking, const ComputeOptions& compute) {
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

// The text that orders and calibrates, and behind it that which measures a search.
struct QuantizeText {
  std::optional<LoadedText> loaded;
  TokenWindows calibration, held_out;

  const LoadedText* text() const { return loaded ? &*loaded : nullptr; }
};

QuantizeText load_quantize_text(const QuantizeRequest& options, const Ranking& ranking, const Checkpoint& checkpoint,
                                ProgressSink& progress) {
  QuantizeText text;
  const int64_t searched = ranking.is_searched ? options.search_samples : 0;
  TextOptions wanted = options.calibration;
  wanted.samples = (wanted.samples > 0 ? wanted.samples : 32) + searched;
  text.loaded = load_windows(wanted, TextUse::kCalibration, options.common, checkpoint, progress);
  const TokenWindows& windows = text.loaded->windows;
  text.calibration = windows.part(0, windows.count - searched);
  text.held_out = windows.part(windows.count - searched, searched);
  if (ranking.is_searched && text.held_out.length < 2)
    throw_error(ErrorKind::kUsage, "--seqlen ", text.held_out.length,
                ": a window of one token has no next one to measure");
  return text;
}

void check_quantize_options(const QuantizeRequest& options) {
  check_levels(options);
  if (!options.gguf && (!options.types.empty() || !options.embeddings.empty()))
    throw_error(ErrorKind::kUsage, options.types.empty() ? "--embeddings" : "--types", ": belongs to --gguf");
  for (const char* of_gptq : {"--damping", "--natural-order"}) {
    if (options.method != QuantizeMethod::kGptq && options.common.is_given(of_gptq))
      throw_error(ErrorKind::kUsage, of_gptq, ": belongs to --method gptq, not to ", name_of(options.method));
  }
}

OrderedJson quantize_fingerprint(const Quantizing& in, const QuantizeOutput& to) {
  OrderedJson json = fingerprint(in.options.common, in.compute, in.checkpoint, to.text, in.options.calibration);
  add_file(json, "--order", to.ranking.file);
  add_file(json, "--plan", in.options.plan);
  return json;
}

// What there is to do behind the preparations, with an earlier run's part taken off.
Outcome<QuantizeResult> run_prepared(const Quantizing& in, const QuantizeOutput& to,
                                     std::chrono::steady_clock::time_point start, ProgressSink& progress) {
  const OrderedJson run_description = describe_run(in.options.common, in.compute, in.checkpoint);
  const auto timed = [&](QuantizedModel& model, double earlier_seconds) {
    model.seconds = earlier_seconds + seconds_since(start);
    model.peak = peak_memory(in.compute);
  };
  if (in.options.gguf) {
    if (auto finished = finish_gguf(in, to, run_description, progress)) {
      if (auto* result = std::get_if<QuantizeResult>(&*finished)) timed(std::get<QuantizedModel>(*result), 0);
      return std::move(*finished);
    }
    check_gguf_export(in.checkpoint, to.out, in.options.common.force);
  } else if (auto earlier = earlier_result(in.options.common, to.out, *to.work, run_description)) {
    return std::move(*earlier);
  }
  Journal journal(to.work, quantize_fingerprint(in, to), run_description, journal_options(in.options.common));
  QuantizedModel model;
  with_journal(journal, in.options.common, [&] {
    model = quantize_to_folder(in, to, journal, progress);
    timed(model, journal.earlier_seconds());
  });
  return QuantizeResult(std::move(model));
}

OrderedJson model_json(const QuantizedModel& model) {
  return written_json(model.record, model.seconds, model.peak, model.output);
}

OrderedJson sweep_json(const QuantSweep& sweep) {
  OrderedJson json = sweep.record;
  add_cost(json, sweep.seconds, sweep.peak);
  return json;
}

}  // namespace

OrderedJson to_json(const QuantizeResult& result) {
  const auto* model = std::get_if<QuantizedModel>(&result);
  return model != nullptr ? model_json(*model) : sweep_json(std::get<QuantSweep>(result));
}

Outcome<QuantizeResult> run(const QuantizeRequest& options, ProgressSink& progress) {
  const auto start = std::chrono::steady_clock::now();
  check_quantize_options(options);
  if (!options.sweep.empty()) return run_sweep(options, progress);
  const Ranking ranking = needs_order(options) ? parse_ranking(options.order) : Ranking{};
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  const auto checkpoint = open_model(options.common, progress);
  const fs::path out = quantized_place(options, *checkpoint);
  Quantizing in{options, compute, *checkpoint};
  if (!options.plan.empty()) {
    check_formats(checkpoint->config(),
                  formats_of(format_rule(in), read_quant_plan(options.plan, checkpoint->config())));
  }
  QuantizeText text;
  if (in.by_gptq() || ranking.needs_text()) {
    text = load_quantize_text(options, ranking, *checkpoint, progress);
    in.calibration = &text.calibration;
    in.held_out = &text.held_out;
  }
  auto prepared =
      prepare(options.common, *checkpoint, compute,
              {"quantize", [&](const ComputeOptions& with, int64_t) { return estimate_quantizing(in, ranking, with); },
               0, out});
  if (auto* dry_run = std::get_if<DryRun>(&prepared)) return std::move(*dry_run);
  compute = std::get<ResourcePlan>(prepared).compute;
  const fs::path folder = options.gguf ? fs::path(out).concat(".blocks") : out;
  const auto work = std::make_shared<WorkFolder>(CheckpointWriter::partial_folder(folder));
  return run_prepared(in, {ranking, text.text(), out, folder, work}, start, progress);
}

}  // namespace dynslice
