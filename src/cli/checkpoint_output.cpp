#include "cli/checkpoint_output.h"

#include "cli/journaling.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/hash.h"
#include "dynslice/text/hub.h"

namespace dynslice::cli {
namespace {

namespace fs = std::filesystem;

// --force must never remove the model that is being read.
void check_apart(const fs::path& out, const Checkpoint& checkpoint) {
  const auto target = fs::weakly_canonical(out);
  for (auto place = fs::weakly_canonical(checkpoint.path()); place.has_relative_path(); place = place.parent_path()) {
    if (place == target) {
      throw_error(ErrorKind::kUsage, out.string(), ": holds the model that is read; choose another folder with -o");
    }
  }
}

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

// The record of a source that dynslice wrote itself.
std::optional<OrderedJson> earlier_record(const Checkpoint& checkpoint) {
  const fs::path file = checkpoint.path() / "dynslice.json";
  std::error_code error;
  if (!fs::is_regular_file(file, error)) return std::nullopt;
  const std::string text = read_file(file);
  parse_json(text, file.string());
  return OrderedJson::parse(text);
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

std::optional<OrderedJson> finished_earlier(const fs::path& out, const OrderedJson& run_description) {
  std::error_code error;
  if (!fs::exists(out / "dynslice.json", error)) return std::nullopt;
  const std::string text = read_file(out / "dynslice.json");
  const Json checked = parse_json(text, (out / "dynslice.json").string());
  const OrderedJson json = OrderedJson::parse(text);
  const auto job = [](OrderedJson run) {
    run["command_line"] = job_command_line(run.at("command_line").get<std::vector<std::string>>(), false);
    return to_text(run);
  };
  try {
    if (checked.is_object() && job(json.at("run")) == job(run_description)) return json;
  } catch (const Json::exception&) {
    // Not of this program, or of another version.
  }
  return std::nullopt;
}

}  // namespace dynslice::cli
