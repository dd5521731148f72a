// dynslice heal: trains a smaller model back towards what it was.
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <numeric>

#include "cli/show/training.h"
#include "cli/show/written.h"
#include "cli/verbs/prepare_and_show.h"
#include "cli/verbs/verbs.h"
#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/heal/distill.h"
#include "dynslice/heal/lora.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/sizes.h"
#include "dynslice/jobs/training.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/resources/estimate.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/hash.h"
#include "dynslice/support/log.h"
#include "dynslice/text/datasets/instructions.h"
#include "dynslice/text/tokenizer/tokenizer.h"
#include "dynslice/train/estimate.h"

namespace dynslice::cli {
namespace {

LoraOptions lora_options(const HealRequest& options) {
  LoraOptions lora;
  lora.rank = options.rank;
  lora.alpha = options.alpha;
  lora.dropout = options.dropout;
  lora.seed = options.training.seed;
  if (options.target_modules == "all") return lora;
  lora.modules.clear();
  for (std::string rest = options.target_modules + ","; !rest.empty();) {
    const size_t comma = rest.find(',');
    lora.modules.push_back(rest.substr(0, comma));
    rest.erase(0, comma + 1);
  }
  return lora;
}

int64_t sequence_length(const TextOptions& text, const ModelConfig& config) {
  if (text.seqlen > config.max_position_embeddings) {
    throw_error(ErrorKind::kUsage, "--seqlen ", text.seqlen, ": is above the model's maximum of ",
                config.max_position_embeddings, " positions");
  }
  return text.seqlen > 0 ? text.seqlen : std::min<int64_t>(1024, config.max_position_embeddings);
}

// Questions and answers as tokens: the loss counts from the answer's first one on. What is longer than a sequence is
// cut; an answer of which nothing is left says nothing.
std::vector<TrainingExample> load_examples(const HealRequest& options, const Checkpoint& checkpoint) {
  const auto tokenizer = load_tokenizer(checkpoint.path());
  const auto length = static_cast<size_t>(sequence_length(options.text, checkpoint.config()));
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

// ---- Where the layers of a smaller model stand in the original

// Records of how the model came to be, the last step first.
std::vector<OrderedJson> story_of(const Checkpoint& checkpoint) {
  std::vector<OrderedJson> story;
  const std::filesystem::path file = checkpoint.path() / "dynslice.json";
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error)) return story;
  const std::string text = read_file(file);
  parse_json(text, file.string());
  for (OrderedJson record = OrderedJson::parse(text); record.is_object();) {
    OrderedJson earlier = record.contains("source_record") ? record["source_record"] : OrderedJson();
    record.erase("source_record");
    story.push_back(std::move(record));
    record = std::move(earlier);
  }
  return story;
}

// A step that changed the layers: of every layer, the first one of the model before that it is made of.
struct DepthStep {
  std::vector<int64_t> first_sources;
  int64_t layers_before = 0;
};

std::optional<DepthStep> depth_step(const OrderedJson& record, const std::string& where) {
  const auto method = record.find("method");
  if (method == record.end() || !method->is_string() || !method->get<std::string>().starts_with("depth "))
    return std::nullopt;
  DepthStep step;
  try {
    const auto integer = [](const OrderedJson& value) {
      if (!value.is_number_integer()) throw OrderedJson::other_error::create(501, "no integer", nullptr);
      return value.get<int64_t>();
    };
    step.layers_before = integer(record.at("layers").at("before"));
    for (const auto& layers : record.at("plan").at("layers")) step.first_sources.push_back(integer(layers.at(0)));
  } catch (const OrderedJson::exception&) {
    throw_error(ErrorKind::kBadInput, where,
                ": of a depth step, key \"plan.layers\" must be a list of lists of layers, and \"layers.before\" their "
                "number before");
  }
  return step;
}

// For every layer of the model, how many layers of the original the stream that leaves it stands behind.
std::vector<int64_t> boundaries_in(const Checkpoint& checkpoint, const Checkpoint& original) {
  const std::string where = (checkpoint.path() / "dynslice.json").string();
  std::vector<int64_t> first(static_cast<size_t>(checkpoint.config().num_layers()));
  std::iota(first.begin(), first.end(), 0);
  int64_t layers = checkpoint.config().num_layers();  // of the model that `first` speaks of
  const int64_t wanted = original.config().num_layers();
  for (const OrderedJson& record : story_of(checkpoint)) {
    const auto step = depth_step(record, where);
    if (!step || layers == wanted) continue;
    for (int64_t& layer : first) {
      if (layer < 0 || layer >= static_cast<int64_t>(step->first_sources.size()))
        throw_error(ErrorKind::kBadInput, where, ": its plan has no layer ", layer);
      layer = step->first_sources[static_cast<size_t>(layer)];
    }
    layers = step->layers_before;
  }
  if (layers != wanted) {
    throw_error(ErrorKind::kUsage, original.path().string(), ": has ", wanted, " layers, and none of the models that ",
                checkpoint.path().string(), " was made from has as many (the first has ", layers,
                "): its layers cannot be placed in it");
  }
  std::vector<int64_t> boundaries(first.begin() + 1, first.end());
  boundaries.push_back(wanted);
  return boundaries;
}

// ---- The work

struct Healing {
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

struct Healed {
  std::vector<LayerUpdates> updates;
  OrderedJson json;
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;
  std::string summary;
};

Healed heal_on_text(const Healing& in, Journal& journal, ProgressSink& progress) {
  const ResidentModel model(in.checkpoint, in.compute, progress);
  const auto cut = in.examples.end() - in.setup.held_out;
  HealResult result = heal_by_lora(model, {in.examples.begin(), cut}, {cut, in.examples.end()}, in.lora,
                                   in.setup.options, in.recomputes, progress, {journal, "training"});
  return {std::move(result.updates), to_json(result.training), training_header(true),
          training_rows(result.training, true), training_summary(result.training)};
}

Healed heal_on_streams(const Healing& in, Journal& journal, ProgressSink& progress) {
  const LayerWalk walk(in.checkpoint, in.compute, in.text->windows.length, progress);
  DistillOptions options{in.lora, in.setup.options, in.setup.held_out, in.recomputes};
  DistillResult result = heal_by_distillation(walk, *in.original, boundaries_in(in.checkpoint, *in.original),
                                              in.text->windows, options, {journal, "distilling"});
  Healed healed{std::move(result.updates), {}, {"layer", "error before", "after"}, {}, {}};
  healed.json = {{"tokens", result.tokens}, {"layers", OrderedJson::array()}};
  for (size_t layer = 0; layer < result.layers.size(); ++layer) {
    const DistilledLayer& figures = result.layers[layer];
    healed.json["layers"].push_back({{"before", figures.before}, {"after", figures.after}});
    healed.rows.push_back({std::to_string(layer), format_fixed(figures.before, 5), format_fixed(figures.after, 5)});
  }
  healed.summary =
      "Errors are relative squares of what leaves a layer, on held-out windows; layers learnt one after "
      "the other, on " +
      format_count(result.tokens) + " tokens together.\n";
  return healed;
}

// The model that an adapter belongs to, as peft names it.
OrderedJson adapter_description(const Healing& in) {
  const std::string& asked = in.options.common.model;
  std::error_code error;
  const bool is_path = asked.empty() || std::filesystem::exists(asked, error);
  const size_t at = is_path ? std::string::npos : asked.find('@');
  const std::string base =
      is_path ? std::filesystem::weakly_canonical(in.checkpoint.path()).string() : asked.substr(0, at);
  OrderedJson json = adapter_config(in.lora, base);
  if (at != std::string::npos) json["revision"] = asked.substr(at + 1);
  if (in.checkpoint.path().extension() == ".gguf") {
    log(LogLevel::kWarning,
        "the adapter's model is a GGUF file, which peft does not load: give it the model that the "
        "file was made from");
  }
  return json;
}

void report(const Healing& in, const Healed& healed, OrderedJson json, const std::filesystem::path& out,
            double seconds) {
  if (in.options.common.json) {
    json["wall_seconds"] = seconds;
    add_peaks(json, peak_memory(in.compute));
    json["output"] = out.string();
    std::cout << to_text(json);
    return;
  }
  print_table(healed.header, healed.rows);
  std::cout << '\n'
            << healed.summary << format_duration(seconds) << ", peak memory " << format_bytes(peak_rss_bytes())
            << ".\n";
  if (in.options.adapter) {
    std::cout << "Written to " << out.string() << ": an adapter for peft, PeftModel.from_pretrained(model, folder)\n";
  } else {
    print_written(in.options.common, out);
  }
}

void heal_to_folder(const Healing& in, const std::filesystem::path& out, const std::shared_ptr<WorkFolder>& folder,
                    Journal& journal, std::chrono::steady_clock::time_point start, ProgressSink& progress) {
  const Healed healed =
      in.original != nullptr ? heal_on_streams(in, journal, progress) : heal_on_text(in, journal, progress);
  const ModelConfig& config = in.checkpoint.config();
  const at::ScalarType dtype = output_dtype(in.options.out_dtype, in.checkpoint);
  OrderedJson json = describe_checkpoint(in.original != nullptr ? "heal distill" : "heal lora", journal.job(),
                                         in.checkpoint, progress);
  json["lora"] = {{"rank", in.lora.rank},
                  {"alpha", in.lora.alpha},
                  {"dropout", in.lora.dropout},
                  {"target_modules", in.lora.modules},
                  {"merged", !in.options.adapter}};
  json["training"] = healed.json;
  if (in.text != nullptr) json["text"] = describe(*in.text, in.options.text);
  if (in.original != nullptr) json["original"] = in.original->path().string();
  if (!in.options.instructions.empty()) {
    json["instructions"] = {{"file", in.options.instructions}, {"sha256", sha256(read_file(in.options.instructions))}};
  }
  const SizeChange change = size_change(in.checkpoint, config, dtype);
  add_sizes(json, change);
  const auto tensors = in.options.adapter ? adapter_tensors(healed.updates) : checkpoint_tensors(config, dtype);
  CheckpointWriter writer(out, tensors, in.options.common.force, folder, journal.attached(),
                          CheckpointWriter::kShardBytes, in.options.adapter ? "adapter_model" : "model");
  if (in.options.adapter) {
    write_adapter(healed.updates, writer);
    writer.write_text("adapter_config.json", to_text(adapter_description(in)));
  } else {
    write_healed(in.checkpoint, healed.updates, dtype, writer, progress);
    write_companions(in.checkpoint, config, dtype, writer);
  }
  json = whole_record(std::move(json));
  writer.write_text("dynslice.json", to_text(json));
  writer.commit([&] { journal.remove_files(); });
  const double seconds =
      journal.earlier_seconds() + std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report(in, healed, json, out, seconds);
}

ResourceEstimate estimate_healing(const Healing& in, const ComputeOptions& compute) {
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

uint64_t kept_activations(const ModelConfig& config, const ComputeOptions& compute, int64_t tokens, bool one_layer) {
  uint64_t all = 0, most = 0;
  for (const LayerShape& shape : config.layers) {
    const auto bytes = static_cast<uint64_t>(activation_bytes(shape, config.head_dim, compute.dtype, tokens));
    all += bytes;
    most = std::max(most, bytes);
  }
  return one_layer ? most : all;
}

}  // namespace

void run(const HealRequest& options, TerminalProgress& progress) {
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
  std::unique_ptr<Checkpoint> original;
  if (!options.distill.empty()) {
    original = open_checkpoint(resolve_model(options.distill, progress));
    check_apart(out, *original);
  }
  std::optional<LoadedText> text;
  std::vector<TrainingExample> examples;
  if (options.instructions.empty()) {
    text = load_windows(options.text, TextUse::kCalibration, options.common, *checkpoint, progress);
    examples = examples_of(text->windows);
  } else {
    examples = load_examples(options, *checkpoint);
  }
  int64_t longest = 0;
  for (const TrainingExample& example : examples) longest = std::max(longest, static_cast<int64_t>(example.ids.size()));
  const TrainingSetup setup =
      training_setup(options.training, static_cast<int64_t>(examples.size()), longest, compute.device);
  check_training(setup.options, setup.sequences - setup.held_out);
  Healing in{options,  *checkpoint, original.get(), text ? &*text : nullptr,
             examples, setup,       compute,        lora_options(options)};
  in.recomputes = recomputes(options.training,
                             kept_activations(checkpoint->config(), compute, setup.micro_tokens(), original != nullptr),
                             compute.device);
  const auto resources = prepare_or_show(
      options.common, *checkpoint, compute,
      {"heal", [&](const ComputeOptions& with, int64_t) { return estimate_healing(in, with); }, 0, out});
  if (!resources) return;
  compute = resources->compute;

  const OrderedJson run_description = describe_run(options.common, compute, *checkpoint);
  const auto folder = std::make_shared<WorkFolder>(CheckpointWriter::partial_folder(out));
  if (is_finished(options.common, out, *folder, run_description)) return;
  OrderedJson job = fingerprint(options.common, compute, *checkpoint, text ? &*text : nullptr, options.text);
  add_file(job, "--instructions", options.instructions);
  if (original) {
    job["original"] = std::filesystem::weakly_canonical(original->path()).string();
    add_model_files(job, "original", *original);
  }
  Journal journal(folder, job, run_description, journal_options(options.common));
  with_journal(journal, options.common, [&] { heal_to_folder(in, out, folder, journal, start, progress); });
}

}  // namespace dynslice::cli
