#include "dynslice/jobs/checkpoint_output.h"

#include <array>

#include "dynslice/checkpoint/modeling_files.h"
#include "dynslice/checkpoint/tensor_copy.h"
#include "dynslice/hub/hub.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/hash.h"
#include "dynslice/support/log.h"
#include "dynslice/support/machine.h"
#include "dynslice/tensor/dtype.h"
#include "dynslice/text/tokenizer/tokenizer.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

OrderedJson hash_sources(const Checkpoint& checkpoint, ProgressSink& progress) {
  int64_t bytes = 0;
  for (const auto& file : checkpoint.files()) bytes += static_cast<int64_t>(fs::file_size(file));
  ProgressTask task(progress, "Hashing the source", bytes, "bytes");
  OrderedJson hashes;
  for (const auto& file : checkpoint.files()) {
    hashes[file.filename().string()] = sha256_of_file(file, [&](int64_t read) { task.advance(read); });
  }
  return hashes;
}

constexpr std::array kSizes = {"layers", "parameters", "bytes", "flops_per_token"};

// The record of a source that dynslice wrote itself.
std::optional<OrderedJson> earlier_record(const Checkpoint& checkpoint) {
  const fs::path file = checkpoint.path() / "dynslice.json";
  std::error_code error;
  if (!fs::is_regular_file(file, error)) return std::nullopt;
  const std::string text = read_file(file);
  parse_json(text, file.string());
  return OrderedJson::parse(text);
}

// What tells transformers how images and other inputs become tokens.
void copy_processor_files(const fs::path& source, CheckpointWriter& writer) {
  for (const char* name : {"preprocessor_config.json", "processor_config.json"}) {
    std::error_code error;
    if (fs::is_regular_file(source / name, error)) writer.write_text(name, read_file(source / name));
  }
}

}  // namespace

std::string model_name(const CommonOptions& common, const Checkpoint& checkpoint) {
  if (const auto id = parse_hub_id(common.model); id && !fs::exists(common.model)) {
    return id->repo.substr(id->repo.find('/') + 1);  // the source lies in a folder named by its commit
  }
  fs::path source = fs::absolute(checkpoint.path()).lexically_normal();
  if (!source.has_filename()) source = source.parent_path();
  return source.extension() == ".gguf" ? source.stem().string() : source.filename().string();
}

void check_apart(const fs::path& out, const Checkpoint& checkpoint) {
  const auto target = fs::weakly_canonical(out);
  for (auto place = fs::weakly_canonical(checkpoint.path()); place.has_relative_path(); place = place.parent_path()) {
    if (place == target) {
      throw_error(ErrorKind::kUsage, out.string(), ": holds the model that is read; choose another folder with -o");
    }
  }
}

void check_output(const fs::path& out, bool may_exist) {
  if (fs::exists(out) && !may_exist) {
    throw_error(ErrorKind::kUsage, out.string(), ": exists; choose another folder with -o, or replace it with --force");
  }
}

fs::path checkpoint_folder(const std::string& wanted, const CommonOptions& common, const Checkpoint& checkpoint,
                           const std::string& suffix) {
  const fs::path out = wanted.empty() ? model_name(common, checkpoint) + "-" + suffix : wanted;
  check_output(out, common.force || common.resume);
  check_apart(out, checkpoint);
  return out;
}

OrderedJson describe_checkpoint(const std::string& method, const OrderedJson& run_description,
                                const Checkpoint& checkpoint, ProgressSink& progress) {
  OrderedJson json;
  json["kind"] = "dynslice.checkpoint";
  json["method"] = method;
  json["run"] = run_description;
  json["source"] = hash_sources(checkpoint, progress);
  if (auto earlier = earlier_record(checkpoint)) json["source_record"] = std::move(*earlier);
  return json;
}

std::vector<OutputTensor> output_tensors(const Checkpoint& source, const ModelConfig& config, at::ScalarType dtype) {
  std::vector<OutputTensor> tensors = checkpoint_tensors(config, dtype);
  if (!config.is_wrapped()) return tensors;
  for (OutputTensor& other : other_tensors(source)) tensors.push_back(std::move(other));
  return tensors;
}

void write_companions(const Checkpoint& source, const ModelConfig& config, at::ScalarType dtype,
                      CheckpointWriter& writer, ProgressSink& progress, const OrderedJson& quantization) {
  write_tokenizer_files(source.path(), writer.folder());
  if (config.is_wrapped()) {
    copy_tensors(
        source, other_tensors(source), [](const std::string&) { return true; }, "Copying other parts", writer,
        progress);
    copy_processor_files(source.path(), writer);
  } else if (source.config().is_wrapped()) {
    log(LogLevel::kWarning, "only the language model is written: what stands beside it in " + source.path().string() +
                                " fits no model of these shapes");
  }
  OrderedJson described = write_config(config, torch_dtype_name(dtype));
  if (!quantization.is_null()) described["quantization_config"] = quantization;
  writer.write_text("config.json", to_text(described));
  for (const ModelingFile& file : modeling_files(config)) writer.write_text(file.name, std::string(file.content));
}

std::optional<EarlierResult> earlier_result(const CommonOptions& common, const fs::path& out, const WorkFolder& folder,
                                            const OrderedJson& run_description) {
  if (common.resume && !Journal::is_in(folder.path())) {
    if (auto finished = finished_earlier(out, run_description)) return tell_finished(out, std::move(*finished));
  }
  check_output(out, common.force);
  return std::nullopt;
}

OrderedJson steps_of(const OrderedJson& record) {
  OrderedJson steps = OrderedJson::array();
  if (!record.is_object()) return steps;
  if (record.contains("source_record")) steps = steps_of(record.at("source_record"));
  OrderedJson step;
  if (record.contains("method")) step["method"] = record.at("method");
  if (record.contains("run") && record.at("run").is_object()) {
    for (const char* key : {"model", "command_line"}) {
      if (record.at("run").contains(key)) step[key] = record.at("run").at(key);
    }
  }
  for (const char* key : kSizes) {
    if (record.contains(key)) step[key] = record.at(key);
  }
  steps.push_back(std::move(step));
  return steps;
}

OrderedJson change_of(const OrderedJson& steps) {
  OrderedJson change = OrderedJson::object();
  for (const OrderedJson& step : steps) {
    for (const char* size : kSizes) {  // a step that leaves the number of layers alone does not tell of it
      if (!step.contains(size) || !step.at(size).is_object()) continue;
      for (const auto& [end, value] : step.at(size).items()) {
        if (end == "after" || !change[size].contains(end)) change[size][end] = value;
      }
    }
  }
  return change;
}

OrderedJson whole_record(OrderedJson record) {
  if (!record.contains("source_record")) return record;
  OrderedJson earlier = record.at("source_record");
  const OrderedJson steps = steps_of(record);
  record.erase("source_record");
  record["since_original"] = OrderedJson::object();
  if (steps.front().contains("model")) record["since_original"]["model"] = steps.front().at("model");
  record["since_original"].update(change_of(steps));
  record["steps"] = steps;
  if (earlier.is_object()) {  // said above
    earlier.erase("since_original");
    earlier.erase("steps");
  }
  record["source_record"] = std::move(earlier);
  return record;
}

std::optional<OrderedJson> record_of_job(const std::string& text, const std::string& where,
                                         const OrderedJson& run_description) {
  const Json checked = parse_json(text, where);
  const OrderedJson json = OrderedJson::parse(text);
  const auto job = [](OrderedJson run) {
    const auto reduce = [](OrderedJson& line) { line = job_command_line(line.get<std::vector<std::string>>(), false); };
    reduce(run.at("command_line"));
    if (run.contains("recipe")) reduce(run.at("recipe").at("command_line"));
    return to_text(run);
  };
  try {
    if (checked.is_object() && job(json.at("run")) == job(run_description)) return json;
  } catch (const Json::exception&) {
    // Not of this program, or of another version.
  }
  return std::nullopt;
}

std::optional<OrderedJson> finished_earlier(const fs::path& out, const OrderedJson& run_description) {
  std::error_code error;
  const fs::path file = out / "dynslice.json";
  if (!fs::exists(file, error)) return std::nullopt;
  return record_of_job(read_file(file), file.string(), run_description);
}

OrderedJson written_json(OrderedJson record, double seconds, const PeakMemory& peak, const fs::path& output) {
  add_cost(record, seconds, peak);
  record["output"] = output.string();
  return record;
}

EarlierResult tell_finished(const fs::path& out, OrderedJson record) {
  log(LogLevel::kInfo, out.string() + ": was finished by the run before; nothing is left to do");
  return {out, std::move(record)};
}

}  // namespace dynslice
