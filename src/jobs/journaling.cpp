#include "dynslice/jobs/journaling.h"

#include <ATen/Parallel.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <map>
#include <regex>
#include <sstream>

#include "dynslice/support/environment.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/hash.h"
#include "dynslice/tensor/dtype.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

// A journal in the cache folder that nobody went on from for so long is removed.
constexpr std::chrono::hours kKeptInCache{24 * 30};

void remove_old_journals(const fs::path& folder) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    std::error_code ignored;
    const auto written = fs::last_write_time(entry->path(), ignored);
    if (ignored || fs::file_time_type::clock::now() - written < kKeptInCache) continue;
    try {
      WorkFolder(entry->path()).open_existing();  // and removed by the destructor
    } catch (const Error&) {                      // another run works in it, or it is not ours
      continue;
    }
  }
}

std::string quoted(const std::string& argument) {
  const bool plain = !argument.empty() && std::all_of(argument.begin(), argument.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
           std::string_view("-_./=:%,@+").find(c) != std::string_view::npos;
  });
  if (plain) return argument;
  std::string text = "'";
  for (const char c : argument) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

fs::path cached_journal(const OrderedJson& fingerprint) {
  const std::string text = fingerprint.dump(-1, ' ', true, OrderedJson::error_handler_t::replace);
  return cache_folder() / "journals" /
         (fingerprint.at("command").get<std::string>() + "-" + sha256(text).substr(0, 16));
}

}  // namespace

std::string shell_line(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + quoted(word);
  return text;
}

std::string resuming_command(const CommonOptions& common) {
  const auto& command_line = common.recipe ? common.recipe->command_line : common.command_line;
  return shell_line(job_command_line(command_line, true)) + " --resume";
}

std::vector<std::string> job_command_line(const std::vector<std::string>& command_line, bool all_options) {
  constexpr std::array kNeutral = {"--force", "--json", "-q", "--quiet", "-v", "--verbose", "--keep-steps"};
  std::vector<std::string> kept;
  for (auto argument = command_line.begin(); argument != command_line.end(); ++argument) {
    if (*argument == "--resume") continue;
    if (!all_options) {
      if (std::find(kNeutral.begin(), kNeutral.end(), *argument) != kNeutral.end()) continue;
      if (argument->starts_with("--log-file=")) continue;
      if (*argument == "--log-file" && argument + 1 != command_line.end()) {
        ++argument;  // the file
        continue;
      }
    }
    kept.push_back(*argument);
  }
  return kept;
}

OrderedJson fingerprint(const CommonOptions& common, const ComputeOptions& compute, const Checkpoint& checkpoint,
                        const LoadedText* text, const TextOptions& text_options) {
  OrderedJson json;
  json["command"] = common.verb;
  json["model"] = fs::weakly_canonical(checkpoint.path()).string();
  for (const auto& [name, value] : common.given) json[name] = value;
  if (text != nullptr) {
    const OrderedJson described = describe(*text, text_options);
    for (const char* key : {"sha256", "stream_tokens", "range", "windows", "seqlen"})
      json["text " + std::string(key)] = described.at(key);
    Checksum ids;
    ids.update(text->windows.ids.data(), text->windows.ids.size() * sizeof(int32_t));
    json["token ids"] = ids.hex();
  }
  add_model_files(json, "model", checkpoint);
  json["device"] = compute.device.str();
  json["dtype"] = dtype_name(compute.dtype);
  json["chunk_tokens"] = compute.chunk_tokens;
  json["threads"] = at::get_num_threads();
  json["DYNSLICE_GEMM"] = environment("DYNSLICE_GEMM");
  json["dynslice"] = DYNSLICE_VERSION;
  json["libtorch"] = TORCH_VERSION;
  return json;
}

void add_model_files(OrderedJson& fingerprint, const std::string& name, const Checkpoint& checkpoint) {
  for (const fs::path& file : checkpoint.files()) {
    const auto changed = fs::last_write_time(file).time_since_epoch().count();
    fingerprint[name + " file " + file.filename().string()] =
        std::to_string(fs::file_size(file)) + " bytes of time " + std::to_string(changed);
  }
}

void add_file(OrderedJson& fingerprint, const std::string& option, const std::string& file) {
  if (!file.empty()) fingerprint[option + " sha256"] = sha256(read_file(file));
}

FaultPoint fault_point() {
  static const std::regex form("(?:(.+):)?([1-9][0-9]{0,8})(?::(data|state|saved))?((?::(?:KILL|INT|TERM))*)");
  static const std::map<std::string, SaveMoment> moments = {{"", SaveMoment::kSaved},
                                                            {"data", SaveMoment::kData},
                                                            {"state", SaveMoment::kState},
                                                            {"saved", SaveMoment::kSaved}};
  static const std::map<std::string, int> numbers = {{"KILL", SIGKILL}, {"INT", SIGINT}, {"TERM", SIGTERM}};
  const std::string text = environment("DYNSLICE_STOP_AFTER");
  if (text.empty()) return {};
  std::smatch parts;
  if (!std::regex_match(text, parts, form)) {
    throw_error(ErrorKind::kUsage, "DYNSLICE_STOP_AFTER=", text,
                ": is not of the form [PHASE:]N[:data|state|saved][:KILL|INT|TERM]..., with N from 1 on");
  }
  std::vector<int> signals;
  std::istringstream names(parts.str(4));
  for (std::string name; std::getline(names, name, ':');) {
    if (!name.empty()) signals.push_back(numbers.at(name));
  }
  if (signals.empty()) signals = {SIGKILL};
  return {parts.str(1), std::stoll(parts.str(2)), moments.at(parts.str(3)), signals};
}

JournalOptions journal_options(const CommonOptions& common) {
  JournalOptions options;
  options.resume = common.resume;
  options.start_over = common.force;
  options.fault = fault_point();
  const std::string pace = environment("DYNSLICE_JOURNAL");
  if (pace == "every") {
    options.pace = JournalPace::kEvery;
  } else if (pace == "off") {
    options.pace = JournalPace::kOff;
  } else if (!pace.empty() && pace != "auto") {
    throw_error(ErrorKind::kUsage, "DYNSLICE_JOURNAL=", pace, ": is not one of auto, every, off");
  }
  return options;
}

std::unique_ptr<Journal> open_journal(const CommonOptions& common, const std::string& output,
                                      const OrderedJson& fingerprint, const OrderedJson& run_description) {
  JournalOptions options = journal_options(common);
  std::error_code error;
  if (!output.empty() && !fs::is_other(output, error)) {
    return std::make_unique<Journal>(std::make_shared<WorkFolder>(output + ".partial"), fingerprint, run_description,
                                     options);
  }
  const fs::path folder = cached_journal(fingerprint);
  remove_old_journals(folder.parent_path());
  auto work_folder = std::make_shared<WorkFolder>(folder);
  try {
    work_folder->open_existing();
  } catch (const Error&) {  // the same job runs already: this one keeps none
    work_folder = std::make_shared<WorkFolder>(folder.string() + "-" + std::to_string(::getpid()));
    options.pace = JournalPace::kOff;
  }
  return std::make_unique<Journal>(work_folder, fingerprint, run_description, options);
}

void with_journal(Journal& journal, const CommonOptions& common, const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    const bool can_resume = journal.keep();
    const bool may_help = error.kind() == ErrorKind::kInterrupted || error.kind() == ErrorKind::kOutOfResources;
    if (!can_resume || !may_help) throw;
    throw Error(error.kind(),
                std::string(error.what()) + "; to go on from " + journal.position() + ": " + resuming_command(common));
  } catch (...) {
    journal.keep();
    throw;
  }
}

}  // namespace dynslice
