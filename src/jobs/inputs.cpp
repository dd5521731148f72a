#include "dynslice/jobs/inputs.h"

#include <ATen/Parallel.h>
#include <torch/version.h>

#include <algorithm>

#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/hub/hub.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/support/environment.h"
#include "dynslice/support/error.h"
#include "dynslice/support/log.h"
#include "dynslice/tensor/dtype.h"
#include "dynslice/text/tokenizer/tokenizer.h"

namespace dynslice {
namespace {

constexpr const char* kDefaultModel = "HuggingFaceTB/SmolLM2-135M-Instruct";
constexpr const char* kDefaultModelFile = "SmolLM2-135M-Instruct.Q4_1.gguf";

std::filesystem::path default_model(ProgressSink& progress) {
  std::filesystem::path cached = cache_folder() / "models" / kDefaultModelFile;  // tools/fetch_model.sh puts it there
  if (std::filesystem::exists(cached)) {
    log(LogLevel::kInfo, "No model given: using SmolLM2-135M-Instruct (" + cached.string() + ")");
    return cached;
  }
  log(LogLevel::kInfo,
      std::string("No model given: using ") + kDefaultModel + " from the hub, which is downloaded once");
  return hub_model(HubOptions::from_environment(), {kDefaultModel, "main"}, progress);
}

int64_t window_length(const TextOptions& options, TextUse use, const ModelConfig& config) {
  const int64_t longest = config.max_position_embeddings;
  if (options.seqlen > longest) {
    throw_error(ErrorKind::kUsage, "--seqlen ", options.seqlen, ": is above the model's maximum of ", longest,
                " positions");
  }
  return options.seqlen > 0 ? options.seqlen : std::min<int64_t>(use == TextUse::kCalibration ? 1024 : 2048, longest);
}

}  // namespace

void check_output_file(const std::filesystem::path& file) {
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::absolute(file).parent_path();
  if (!std::filesystem::is_directory(folder, error) || std::filesystem::is_directory(file, error)) {
    throw_error(ErrorKind::kMissingData, file.string(), ": cannot be written: ",
                std::filesystem::is_directory(file, error) ? "it is a folder" : "its folder does not exist");
  }
}

std::filesystem::path resolve_model(const std::string& model, ProgressSink& progress) {
  const std::string name = !model.empty() ? model : environment("DYNSLICE_MODEL");
  if (name.empty()) return default_model(progress);
  std::error_code error;
  if (std::filesystem::exists(name, error)) return name;
  const auto id = name.ends_with(".gguf") ? std::nullopt : parse_hub_id(name);
  if (id) return hub_model(HubOptions::from_environment(), *id, progress);
  throw_error(ErrorKind::kMissingData, name, ": no such folder or file, and not a hub id (org/name)");
}

std::unique_ptr<Checkpoint> open_model(const CommonOptions& options, ProgressSink& progress) {
  return open_model(options, options.model, progress);
}

std::unique_ptr<Checkpoint> open_model(const CommonOptions& options, const std::string& model, ProgressSink& progress) {
  if (options.threads > 0) at::set_num_threads(options.threads);
  auto checkpoint = open_checkpoint(resolve_model(model, progress));
  log(LogLevel::kDebug,
      "model: " + checkpoint->path().string() + ", " + std::to_string(at::get_num_threads()) + " threads");
  return checkpoint;
}

LoadedText load_windows(const TextOptions& options, TextUse use, const CommonOptions& common,
                        const Checkpoint& checkpoint, ProgressSink& progress,
                        std::unique_ptr<Tokenizer>* kept_tokenizer) {
  LoadedText text;
  text.source = load_text(options.spec, use, common.data_dir, progress);
  if (!text.source.notice.empty()) log(LogLevel::kInfo, text.source.notice);
  auto tokenizer = load_tokenizer(checkpoint.path());
  text.stream = tokenizer->encode(text.source.text);
  log(LogLevel::kDebug, text.source.path.string() + ": " + std::to_string(text.stream.size()) + " tokens");
  if (tokenizer->adds_bos()) text.bos_id = tokenizer->bos_id();
  text.cut = {window_length(options, use, checkpoint.config()), options.samples, std::nullopt, options.shuffle};
  if (options.range) {
    text.cut.range =
        TokenRange{options.range->begin, options.range->end.value_or(static_cast<int64_t>(text.stream.size()))};
  }
  const int64_t tokens =
      text.cut.range ? text.cut.range->end - text.cut.range->begin : static_cast<int64_t>(text.stream.size());
  const int64_t usual = text.source.usual_windows;
  if (options.samples == 0 && !options.range && usual > 0 && tokens / text.cut.seqlen > usual) text.cut.samples = usual;
  if (options.at_most && tokens / text.cut.seqlen < text.cut.samples) text.cut.samples = 0;
  text.windows = cut_windows(text.stream, text.cut);
  if (kept_tokenizer != nullptr) *kept_tokenizer = std::move(tokenizer);
  return text;
}

OrderedJson describe(const LoadedText& text, const TextOptions& options) {
  OrderedJson json;
  json["spec"] = options.spec;
  json["name"] = text.source.name;
  json["split"] = text.source.split;
  json["file"] = text.source.path.string();
  json["sha256"] = text.source.sha256;
  json["stream_tokens"] = text.stream.size();
  json["range"] = text.cut.range ? OrderedJson{text.cut.range->begin, text.cut.range->end} : OrderedJson();
  json["windows"] = text.windows.count;
  json["seqlen"] = text.windows.length;
  json["shuffle"] = options.shuffle ? OrderedJson(*options.shuffle) : OrderedJson();
  return json;
}

OrderedJson describe_run(const CommonOptions& common, const ComputeOptions& compute, const Checkpoint& checkpoint) {
  OrderedJson json;
  json["dynslice"] = DYNSLICE_VERSION;
  json["libtorch"] = TORCH_VERSION;
  json["command_line"] = job_command_line(common.command_line, true);  // a resumed run leaves what a whole one does
  json["model"] = checkpoint.path().string();
  json["model_asked"] = common.model;
  json["device"] = compute.device.str();
  json["dtype"] = dtype_name(compute.dtype);
  json["threads"] = at::get_num_threads();
  if (common.recipe) {
    json["recipe"] = {{"file", common.recipe->file},
                      {"description", common.recipe->description},
                      {"step", common.recipe->step},
                      {"steps", common.recipe->steps},
                      {"command_line", job_command_line(common.recipe->command_line, true)}};
  }
  return json;
}

}  // namespace dynslice
