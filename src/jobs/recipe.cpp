#include "dynslice/jobs/recipe.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "dynslice/checkpoint/checkpoint_writer.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/log.h"
#include "dynslice/support/machine.h"
#include "dynslice/support/progress.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

// A folder that goes when it is left empty.
class PassingFolder {
 public:
  explicit PassingFolder(fs::path path) : path_(std::move(path)) {}
  ~PassingFolder() {
    std::error_code not_empty;
    fs::remove(path_, not_empty);
  }
  PassingFolder(const PassingFolder&) = delete;
  PassingFolder& operator=(const PassingFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

OrderedJson parse_result(const std::string& text) { return text.empty() ? OrderedJson() : OrderedJson::parse(text); }

std::optional<OrderedJson> record_of(const fs::path& checkpoint) {
  const fs::path file = checkpoint / "dynslice.json";
  std::error_code error;
  if (!fs::exists(file, error)) return std::nullopt;
  const std::string text = read_file(file);
  parse_json(text, file.string());
  return OrderedJson::parse(text);
}

// The last commands that a record tells of: those of a recipe's own steps.
OrderedJson last_steps(const OrderedJson& record, size_t count) {
  OrderedJson steps = steps_of(record);
  while (steps.size() > count) steps.erase(0);
  return steps;
}

// The same for all ways of calling the program.
std::vector<std::string> job_words(std::vector<std::string> command_line) {
  command_line.erase(command_line.begin());
  return job_command_line(command_line, false);
}

class RecipeRun {
 public:
  RecipeRun(const RecipeRequest& request, const Checkpoint& original)
      : request_(request),
        common_(request.common),
        writers_(static_cast<size_t>(std::count_if(request.steps.begin(), request.steps.end(),
                                                   [](const JobStep& step) { return step.writes(); }))),
        folder_(steps_folder(request.output)),
        work_folder_(std::make_shared<WorkFolder>(folder_.path() / "journal")) {
    const ComputeOptions compute = resolve_compute(common_.device, common_.dtype);
    fingerprint_ = fingerprint(common_, compute, original, nullptr, {});
    description_ = describe_run(common_, compute, original);
  }

  RecipeResult run() {
    if (common_.resume && was_finished()) {
      log(LogLevel::kInfo, request_.output.string() + ": was finished by the run before; nothing is left to do");
      work_folder_->open_existing();  // and removed, if it was left
      for (const JobStep& step : request_.steps) add_result(step, OrderedJson());
      return result();
    }
    check_ways();
    open_journal();
    for (const JobStep& step : request_.steps) take(step);
    RecipeResult done = result();
    journal_->remove_files();
    return done;
  }

 private:
  // Whether a run of this recipe was stopped after its last step.
  bool was_finished() const {
    if (writers_ == 0 || Journal::is_in(work_folder_->path())) return false;
    const auto record = record_of(request_.output);
    if (!record) return false;
    try {
      const OrderedJson done = last_steps(*record, writers_);
      size_t next = 0;
      for (const JobStep& step : request_.steps) {
        if (!step.writes()) continue;
        const auto words = done.at(next++).at("command_line").get<std::vector<std::string>>();
        if (words.empty() || job_words(words) != job_words(step.command_line)) return false;
      }
      return true;
    } catch (const Json::exception&) {
      return false;  // fewer commands, or not of this program
    }
  }

  // What is in the way is not to be found after hours.
  void check_ways() const {
    if (common_.force || Journal::is_in(work_folder_->path())) return;
    for (const JobStep& step : request_.steps) {
      if (step.writes() && !step.is_last) check_output(step.output, false);
    }
    if (writers_ > 0 && !common_.resume && Journal::is_in(CheckpointWriter::partial_folder(request_.output))) {
      throw_error(ErrorKind::kUsage, CheckpointWriter::partial_folder(request_.output).string(),
                  ": another run was stopped there; choose another folder with -o, or drop it with --force");
    }
  }

  void open_journal() {
    JournalOptions journaling = journal_options(common_);
    if (journaling.pace == JournalPace::kAuto) journaling.pace = JournalPace::kEvery;  // steps are few
    journal_ = std::make_unique<Journal>(work_folder_, fingerprint_, description_, journaling);
    goes_on_ = common_.resume;
    if (journal_->is_resumed()) return;
    rehearse();
    work_folder_->open();
    journal_->finish("reading the recipe", OrderedJson::object());
  }

  // Finds out, on the original model, whether all steps could begin, so that a wrong option of the last one is not
  // found after hours. Too little memory is no error here: the model will be smaller by then.
  void rehearse() const {
    for (const JobStep& step : request_.steps) {
      if (!step.can_rehearse) continue;
      try {
        step.run({.force = common_.force || !step.is_last, .dry_run = true, .rehearsal = true});
      } catch (const Error& error) {
        if (error.kind() == ErrorKind::kOutOfResources) continue;
        throw Error(error.kind(), step.title + ": " + error.what());
      }
    }
  }

  void take(const JobStep& step) {
    request_.on_step(step);
    auto result = kept_result(step);
    if (!result) {
      result = work(step);
      journal_->finish(phase_of(step), *result);
    }
    ++finished_;
    request_.on_text(result->value("text", ""));
    add_result(step, result->value("json", OrderedJson()));
    if (step.writes() && !request_.keep_steps) remove_before(step);
  }

  std::string phase_of(const JobStep& step) const {
    return "step " + std::to_string(&step - request_.steps.data() + 1);
  }

  // What the step gave in the run that was stopped.
  std::optional<OrderedJson> kept_result(const JobStep& step) const {
    auto kept = journal_->result(phase_of(step));
    if (!kept) return std::nullopt;
    if (const std::string job = kept->value("job", ""); job != step.job) {
      throw_error(ErrorKind::kUsage, request_.recipe, ": ", step.title, " is `", step.job, "` and was `", job,
                  "` when it was done; only steps after it may be changed, or start over with --force");
    }
    if (kept->contains(common_.json ? "json" : "text")) return kept;
    if (!step.writes()) return std::nullopt;  // what it printed was for the other reader
    (*kept)["text"] = "Done by an earlier run.\n";
    (*kept)["json"] = record_of(step.output).value_or(OrderedJson());
    return kept;
  }

  OrderedJson work(const JobStep& step) {
    return_freed_memory();  // what the step before needed would count as taken
    peak_ = std::max(peak_, peak_rss_bytes());
    reset_peak_rss();
    const bool was_done = journal_->result(phase_of(step)).has_value();  // and is done again for what it prints
    const bool goes_on = !was_done && std::exchange(goes_on_, false) && step.has_journal;
    OrderedJson result = {{"job", step.job}};
    try {
      check_interrupt();
      const std::string text = step.run({.resume = goes_on, .force = may_replace(step, goes_on)});
      result[common_.json ? "json" : "text"] = common_.json ? parse_result(text) : OrderedJson(text);
    } catch (const Error& error) {
      fail(step, error);
    }
    return result;
  }

  // The folders between the steps are this run's own, and so is what an earlier run of a step left in the cache.
  bool may_replace(const JobStep& step, bool goes_on) const {
    return step.is_last || !step.has_journal ? common_.force : !goes_on;
  }

  // Says which step did not come to its end, and how to go on when there is something to go on from.
  [[noreturn]] void fail(const JobStep& step, const Error& error) {
    const std::string command = resuming_command(common_);
    std::string message = step.title + ": " + error.what();
    const bool says_how = std::string_view(error.what()).ends_with(command);
    if (finished_ == 0 && !says_how) {
      journal_->remove_files();
    } else if (journal_->has_state() && !says_how) {
      message += "; to go on with this step: " + command;
    }
    throw Error(error.kind(), message);
  }

  void add_result(const JobStep& step, OrderedJson json) {
    if (json.is_object()) {
      for (const char* key : {"since_original", "steps", "source_record"}) json.erase(key);  // said step by step
    }
    results_.push_back({{"verb", step.verb}, {"command_line", step.command_line}, {"result", std::move(json)}});
  }

  void remove_before(const JobStep& step) const {
    for (const JobStep& earlier : request_.steps) {
      if (&earlier == &step) return;
      if (!earlier.writes()) continue;
      std::error_code error;
      fs::remove_all(earlier.output, error);
      if (error) log(LogLevel::kWarning, earlier.output.string() + ": cannot be removed: " + error.message());
    }
  }

  RecipeResult result() const {
    RecipeResult result{description_.at("model"), results_, std::nullopt, seconds_since(start_),
                        std::max(peak_, peak_rss_bytes())};
    if (journal_) result.seconds += journal_->earlier_seconds();
    const auto record = writers_ > 0 ? record_of(request_.output) : std::nullopt;
    if (record) result.own_steps = last_steps(*record, writers_);
    return result;
  }

  const RecipeRequest& request_;
  const CommonOptions& common_;
  const size_t writers_;  // steps that write a checkpoint
  const PassingFolder folder_;
  const std::shared_ptr<WorkFolder> work_folder_;
  std::unique_ptr<Journal> journal_;
  OrderedJson fingerprint_, description_;
  OrderedJson results_ = OrderedJson::array();
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  uint64_t peak_ = 0;     // before the step in progress
  size_t finished_ = 0;   // steps
  bool goes_on_ = false;  // the next step to work may be one that was stopped
};

}  // namespace

fs::path steps_folder(const fs::path& out) { return CheckpointWriter::partial_folder(out).replace_extension(".steps"); }

RecipeResult run(const RecipeRequest& request, const Checkpoint& original) {
  return RecipeRun(request, original).run();
}

}  // namespace dynslice
