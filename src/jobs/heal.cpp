#include "dynslice/jobs/heal.h"

#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <numeric>
#include <string>
#include <utility>

#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/heal/distill.h"
#include "dynslice/heal/lora.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/jobs/sizes.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/hash.h"
#include "dynslice/support/log.h"
#include "dynslice/text/datasets/instructions.h"
#include "dynslice/text/tokenizer/tokenizer.h"
#include "dynslice/train/estimate.h"
#include "jobs/folder_job.h"
#include "jobs/layer_origins.h"
#include "jobs/model_card.h"
#include "jobs/training.h"

namespace dynslice {
namespace {

LoraOptions lora_options(const HealRequest& options) {
  LoraOptions lora;
  lora.rank = options.rank;
  lora.alpha = options.alpha;
  lora.dropout = options.dropout;
  lora.seed = options.training.seed;
  if (options.target_modules == "all") return lora;
  for (std::string rest = options.target_modules + ","; !rest.empty();) {
    const size_t comma = rest.find(',');
    lora.modules.push_back(rest.substr(0, comma));
    rest.erase(0, comma + 1);
  }
  return lora;
}

int64_t healing_length(const TextOptions& text, const ModelConfig& config) {
  if (text.seqlen > config.max_position_embeddings) {
    throw_error(ErrorKind::kUsage, "--seqlen ", text.seqlen, ": is above the model's maximum of ",
                config.max_position_embeddings, " positions");
  }
  return text.seqlen > 0 ? text.seqlen : std::min<int64_t>(1024, config.max_position_embeddings);
}

// Questions and answers as tokens: the loss counts from the answer's first one on. What is longer than a sequence is
// cut; an answer of which nothing is left says nothing.
std::vector<TrainingExample> instruction_examples(const HealRequest& options, const Checkpoint& checkpoint) {
  const auto tokenizer = load_tokenizer(checkpoint.path());
  const auto length = static_cast<size_t>(healing_length(options.text, checkpoint.config()));
  std::vector<TrainingExample> examples;
  size_t left_out = 0;
  for (const Instruction& entry : load_instructions(options.instructions)) {
    TrainingExample example;
    example.ids = tokenizer->encode(entry.prompt);
    example.first_target = static_cast<int64_t>(example.ids.size());
    const std::vector<int32_t> answer = tokenizer->encode(entry.answer, /*add_special=*/false);
    example.ids.insert(example.ids.end(), answer.begin(), answer.end());
    if (const auto end = tokenizer->eos_id()) example.ids.push_back(*end);
    if (example.ids.size() > length) example.ids.resize(length);
    if (example.targets() < 1) {
      ++left_out;
      continue;
    }
    examples.push_back(std::move(example));
  }
  if (left_out > 0) {
    log(LogLevel::kWarning, options.instructions + ": " + std::to_string(left_out) +
                                " entries were left out: their questions alone fill a sequence (see --seqlen)");
  }
  const auto samples = static_cast<size_t>(options.text.samples);
  if (samples > 0 && examples.size() > samples) examples.resize(samples);
  if (examples.empty()) throw_error(ErrorKind::kUsage, options.instructions, ": nothing is left to train on");
  return examples;
}

// The model of --distill; null without it.
std::unique_ptr<Checkpoint> open_original(const HealRequest& options, const std::filesystem::path& out,
                                          ProgressSink& progress) {
  if (options.distill.empty()) return nullptr;
  auto original = open_checkpoint(resolve_model(options.distill, progress));
  check_apart(out, *original);
  return original;
}

struct HealingText {
  std::optional<LoadedText> loaded;  // none with --instructions
  std::vector<TrainingExample> examples;

  const LoadedText* text() const { return loaded ? &*loaded : nullptr; }
};

HealingText load_healing_text(const HealRequest& options, const Checkpoint& checkpoint, ProgressSink& progress) {
  HealingText text;
  if (options.instructions.empty()) {
    text.loaded = load_windows(options.text, TextUse::kCalibration, options.common, checkpoint, progress);
    text.examples = examples_of(text.loaded->windows);
  } else {
    text.examples = instruction_examples(options, checkpoint);
  }
  return text;
}

TrainingSetup setup_of(const HealRequest& options, const std::vector<TrainingExample>& examples, at::Device device) {
  int64_t longest = 0;
  for (const TrainingExample& example : examples) longest = std::max(longest, static_cast<int64_t>(example.ids.size()));
  TrainingSetup setup = training_setup(options.training, static_cast<int64_t>(examples.size()), longest, device);
  check_training(setup.options, setup.sequences - setup.held_out);
  return setup;
}

// ---- The work

struct HealInputs {
  const HealRequest& options;
  const Checkpoint& checkpoint;
  const Checkpoint* original;  // of --distill
  const LoadedText* text;      // null with --instructions
  const std::vector<TrainingExample>& examples;
  const TrainingSetup& setup;
  const ComputeOptions& compute;
  LoraOptions lora;
  bool recomputes = false;
};

// Trains on the next token; fills in what `result` has of that.
std::vector<LayerUpdates> learn_from_text(const HealInputs& in, HealResult& result, Journal& journal,
                                          ProgressSink& progress) {
  const ResidentModel model(in.checkpoint, in.compute, progress);
  const auto cut = in.examples.end() - in.setup.held_out;
  LoraResult learnt = heal_by_lora(model, {in.examples.begin(), cut}, {cut, in.examples.end()}, in.lora,
                                   in.setup.options, in.recomputes, progress, {journal, "training"});
  result.training = std::move(learnt.training);
  return std::move(learnt.updates);
}

// Trains every layer on the original's streams; fills in what `result` has of that.
std::vector<LayerUpdates> learn_from_streams(const HealInputs& in, HealResult& result, Journal& journal,
                                             ProgressSink& progress) {
  const LayerWalk walk(in.checkpoint, in.compute, in.text->windows.length, progress);
  const DistillOptions options{in.lora, in.setup.options, in.setup.held_out, in.recomputes};
  DistillResult learnt = heal_by_distillation(walk, *in.original, boundaries_in_original(in.checkpoint, *in.original),
                                              in.text->windows, options, {journal, "distilling"});
  result.layers = std::move(learnt.layers);
  result.distilled_tokens = learnt.tokens;
  return std::move(learnt.updates);
}

OrderedJson describe_training(const HealResult& result) {
  if (result.training) return to_json(*result.training);
  OrderedJson json = {{"tokens", result.distilled_tokens}, {"layers", OrderedJson::array()}};
  for (const DistilledLayer& layer : result.layers)
    json["layers"].push_back({{"before", layer.before}, {"after", layer.after}});
  return json;
}

// The model that an adapter belongs to, as peft names it.
OrderedJson adapter_description(const HealInputs& in) {
  const std::string& asked = in.options.common.model;
  std::error_code error;
  const bool is_path = asked.empty() || std::filesystem::exists(asked, error);
  const size_t at = is_path ? std::string::npos : asked.find('@');
  const std::string base =
      is_path ? std::filesystem::weakly_canonical(in.checkpoint.path()).string() : asked.substr(0, at);
  OrderedJson json = adapter_config(in.checkpoint.config(), in.lora, base);
  if (at != std::string::npos) json["revision"] = asked.substr(at + 1);
  if (in.checkpoint.path().extension() == ".gguf") {
    log(LogLevel::kWarning,
        "the adapter's model is a GGUF file, which peft does not load: give it the model that the "
        "file was made from");
  }
  return json;
}

OrderedJson describe_healing(const HealInputs& in, const HealResult& result, const OrderedJson& run_description,
                             ProgressSink& progress) {
  OrderedJson json = describe_checkpoint(in.original != nullptr ? "heal distill" : "heal lora", run_description,
                                         in.checkpoint, progress);
  json["lora"] = {{"rank", in.lora.rank},
                  {"alpha", in.lora.alpha},
                  {"dropout", in.lora.dropout},
                  {"target_modules", updated_modules(in.checkpoint.config(), in.lora)},
                  {"merged", !in.options.adapter}};
  json["training"] = describe_training(result);
  if (in.text != nullptr) json["text"] = describe(*in.text, in.options.text);
  if (in.original != nullptr) json["original"] = in.original->path().string();
  if (!in.options.instructions.empty()) {
    json["instructions"] = {{"file", in.options.instructions}, {"sha256", sha256(read_file(in.options.instructions))}};
  }
  add_sizes(json,
            size_change(in.checkpoint, in.checkpoint.config(), output_dtype(in.options.out_dtype, in.checkpoint)));
  return json;
}

HealResult heal_to_folder(const HealInputs& in, const std::filesystem::path& out,
                          const std::shared_ptr<WorkFolder>& folder, Journal& journal, ProgressSink& progress) {
  HealResult result;
  const std::vector<LayerUpdates> updates = in.original != nullptr ? learn_from_streams(in, result, journal, progress)
                                                                   : learn_from_text(in, result, journal, progress);
  const ModelConfig& config = in.checkpoint.config();
  const at::ScalarType dtype = output_dtype(in.options.out_dtype, in.checkpoint);
  OrderedJson json = describe_healing(in, result, journal.job(), progress);
  const auto tensors =
      in.options.adapter ? adapter_tensors(config, updates) : output_tensors(in.checkpoint, config, dtype);
  CheckpointWriter writer(out, tensors, in.options.common.force, folder, journal.attached(),
                          CheckpointWriter::kShardBytes, in.options.adapter ? "adapter_model" : "model");
  if (in.options.adapter) {
    write_adapter(config, updates, writer);
    writer.write_text("adapter_config.json", to_text(adapter_description(in)));
  } else {
    write_healed(in.checkpoint, updates, dtype, writer, progress);
    write_companions(in.checkpoint, config, dtype, writer, progress);
  }
  result.record = whole_record(std::move(json));
  write_record({in.options.adapter ? CardKind::kAdapter : CardKind::kFinetune, out, in.checkpoint, config},
               result.record, writer);
  writer.commit([&] { journal.remove_files(); });
  result.output = out;
  return result;
}

ResourceEstimate estimate_healing(const HealInputs& in, const ComputeOptions& compute) {
  const ModelConfig& config = in.checkpoint.config();
  const bool by_stream = in.original != nullptr;
  TrainingUse use;
  const std::vector<int64_t> updated = lora_parameters(config, in.lora);
  const int64_t all = std::accumulate(updated.begin(), updated.end(), int64_t{0});
  const auto largest = std::max_element(updated.begin(), updated.end());
  use.first_layer = by_stream ? largest - updated.begin() : 0;
  use.end_layer = by_stream ? use.first_layer + 1 : config.num_layers();
  use.has_head = !by_stream;
  use.parameters = by_stream ? *largest : all;
  use.kept_parameters = by_stream ? all : 0;
  use.micro_tokens = in.setup.micro_tokens();
  use.trained_tokens = in.setup.trained_tokens();
  use.validated_tokens = in.setup.validated_tokens();
  use.recomputes = in.recomputes;
  use.output_bytes = in.options.adapter ? static_cast<uint64_t>(4 * all)
                                        : static_cast<uint64_t>(count_cost(config).parameters) *
                                              c10::elementSize(output_dtype(in.options.out_dtype, in.checkpoint));
  if (!by_stream) return estimate_training(in.checkpoint, compute, {0, 1}, use);
  use.trained_tokens *= config.num_layers();
  use.validated_tokens *= config.num_layers();
  use.streams = config.is_sliced() ? 3 : 2;
  use.matrices = config.is_sliced() ? 4 : 0;
  use.walks = 2;
  return estimate_training(in.checkpoint, compute, amount_of(in.text->windows), use);
}

uint64_t kept_bytes(const ModelConfig& config, const ComputeOptions& compute, int64_t tokens, bool one_layer) {
  uint64_t all = 0, most = 0;
  for (const LayerShape& shape : config.layers) {
    const auto bytes = static_cast<uint64_t>(activation_bytes(shape, compute.dtype, tokens));
    all += bytes;
    most = std::max(most, bytes);
  }
  return one_layer ? most : all;
}

OrderedJson fingerprint_of(const HealInputs& in) {
  OrderedJson job = fingerprint(in.options.common, in.compute, in.checkpoint, in.text, in.options.text);
  add_file(job, "--instructions", in.options.instructions);
  if (in.original != nullptr) {
    job["original"] = std::filesystem::weakly_canonical(in.original->path()).string();
    add_model_files(job, "original", *in.original);
  }
  return job;
}

}  // namespace

OrderedJson to_json(const HealResult& result) {
  return written_json(result.record, result.seconds, result.peak, result.output);
}

Outcome<HealResult> run(const HealRequest& options, ProgressSink& progress) {
  const auto start = std::chrono::steady_clock::now();
  // Weights that are loaded as inference tensors could not be trained through.
  const c10::InferenceMode trains(false);
  const c10::NoGradGuard no_gradients;
  check_training_dtype(options.common.dtype);
  ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
  if (options.lora && !options.distill.empty())
    throw_error(ErrorKind::kUsage, "--lora and --distill are two ways; give one of them");
  const auto checkpoint = open_model(options.common, progress);
  const std::filesystem::path out =
      checkpoint_folder(options.output, options.common, *checkpoint, options.adapter ? "adapter" : "healed");
  const std::unique_ptr<Checkpoint> original = open_original(options, out, progress);
  const HealingText text = load_healing_text(options, *checkpoint, progress);
  const TrainingSetup setup = setup_of(options, text.examples, compute.device);
  HealInputs in{options,       *checkpoint, original.get(), text.text(),
                text.examples, setup,       compute,        lora_options(options)};
  in.recomputes =
      recomputes(options.training, kept_bytes(checkpoint->config(), compute, setup.micro_tokens(), original != nullptr),
                 compute.device);
  auto prepared =
      prepare(options.common, *checkpoint, compute,
              {"heal", [&](const ComputeOptions& with, int64_t) { return estimate_healing(in, with); }, 0, out});
  if (auto* dry_run = std::get_if<DryRun>(&prepared)) return std::move(*dry_run);
  compute = std::get<ResourcePlan>(prepared).compute;

  return write_folder<HealResult>(
      {.common = options.common, .compute = compute, .checkpoint = *checkpoint, .out = out, .start = start},
      [&] { return fingerprint_of(in); },
      [&](const std::shared_ptr<WorkFolder>& folder, Journal& journal) {
        return heal_to_folder(in, out, folder, journal, progress);
      });
}

}  // namespace dynslice
