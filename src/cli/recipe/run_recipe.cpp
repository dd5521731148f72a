// `run`: the steps of a recipe, one after the other in this process, each on what the ones before it made.
#include <algorithm>
#include <chrono>

#include "cli/log/log.h"
#include "cli/recipe/recipe_steps.h"
#include "cli/show/written.h"
#include "cli/verbs/verbs.h"
#include "dynslice/checkpoint/checkpoint_writer.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/support/error.h"
#include "dynslice/support/log.h"
#include "dynslice/support/machine.h"

namespace dynslice::cli {
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

// Names that begin with a dash would be taken for options.
std::string plain_argument(const std::string& path) { return path.starts_with('-') ? "./" + path : path; }

void print_heading(std::ostream& out, const Step& step, const std::vector<std::string>& words) {
  out << "\n== " << step.title << ": " << shell_line(words) << '\n' << std::flush;
}

OrderedJson parse_result(const std::string& text) { return text.empty() ? OrderedJson() : OrderedJson::parse(text); }

// The title of what people see; a comment where the rest is a shell script.
void print_description(std::ostream& out, const Recipe& recipe) {
  if (!recipe.description.empty()) out << "# " << recipe.description << "\n";
}

OrderedJson begin_json(const RunOptions& options, const Recipe& recipe) {
  OrderedJson json;
  json["recipe"] = options.recipe;
  json["description"] = recipe.description;
  return json;
}

// ---- --check and --dry-run

void print_check(std::ostream& out, const RunOptions& options, const Recipe& recipe) {
  const std::string model = plain_argument(options.common.model.empty() ? "MODEL" : options.common.model);
  const std::string output = plain_argument(options.output.empty() ? "OUTPUT" : options.output);
  OrderedJson json = begin_json(options, recipe);
  json["steps"] = OrderedJson::array();
  if (!options.common.json) print_description(out, recipe);
  for (const Step& step : plan_steps(recipe, model, output)) {
    const auto words = words_of(options, step);
    json["steps"].push_back({{"verb", step.recipe->verb.name}, {"command_line", words}});
    if (!options.common.json) out << shell_line(words) << '\n';
  }
  if (options.common.json) out << to_text(json);
}

// What one step would need. What a step before it would make does not exist yet: it is then estimated on the original
// model, which is larger, and what stands against that is said and no failure.
OrderedJson foretell_step(const RunOptions& options, const Recipe& recipe, const Step& step, TerminalProgress& progress,
                          std::ostream& out) {
  OrderedJson json = {{"verb", step.recipe->verb.name}, {"of_original_model", !step.on_original}};
  std::string text;
  try {
    if (step.recipe->has_option("--dry-run"))
      text = run_step(options, recipe, step, {.force = options.common.force, .dry_run = true}, progress);
  } catch (const Error& error) {
    if (step.on_original) throw Error(error.kind(), step.title + ": " + error.what());
    json["error"] = error.what();
    if (!options.common.json) out << "Cannot be foretold: " << error.what() << '\n';
  }
  if (options.common.json) {
    json["needs"] = parse_result(text);
  } else {
    out << text;
  }
  return json;
}

void foretell(const RunOptions& options, const Recipe& recipe, const std::vector<Step>& steps,
              TerminalProgress& progress, std::ostream& out) {
  OrderedJson json = begin_json(options, recipe);
  json["dry_run"] = "run";
  json["steps"] = OrderedJson::array();
  if (!options.common.json) print_description(out, recipe);
  for (Step step : steps) {
    if (!options.common.json) print_heading(out, step, words_of(options, step));
    if (!options.common.json && !step.on_original)
      out << "(what it will work on does not exist yet: this is what the original model would need)\n";
    step.model = steps.front().model;
    json["steps"].push_back(foretell_step(options, recipe, step, progress, out));
  }
  if (options.common.json) out << to_text(json);
}

// ---- the report

// The commands that a recipe's own steps were: the last ones that the record tells of.
OrderedJson own_steps(const OrderedJson& record, size_t count) {
  OrderedJson steps = steps_of(record);
  while (steps.size() > count) steps.erase(0);
  return steps;
}

// "parameters", "after" → 112345678; 0 when the record, which may be anyone's, does not say.
int64_t size_at(const OrderedJson& step, const char* name, const char* end) {
  if (!step.contains(name) || !step.at(name).is_object()) return 0;
  const auto found = step.at(name).find(end);
  return found != step.at(name).end() && found->is_number_integer() ? found->get<int64_t>() : 0;
}

std::string text_at(const OrderedJson& step, const char* name) {
  return step.contains(name) && step.at(name).is_string() ? step.at(name).get<std::string>() : "";
}

void print_sizes_by_step(std::ostream& out, const OrderedJson& steps) {
  const int64_t original = size_at(steps.front(), "parameters", "before");
  std::vector<std::vector<std::string>> rows;
  std::string layers;  // as long as no step tells of another number
  const auto add = [&](const std::string& name, const OrderedJson& step, const char* end) {
    const int64_t parameters = size_at(step, "parameters", end);
    if (const int64_t told = size_at(step, "layers", end); told > 0) layers = std::to_string(told);
    rows.push_back({name, layers, format_count(parameters),
                    rows.empty() ? "" : format_change(static_cast<double>(original), static_cast<double>(parameters)),
                    format_bytes(static_cast<uint64_t>(size_at(step, "bytes", end)))});
  };
  add("before", steps.front(), "before");
  for (const OrderedJson& step : steps) add("after " + text_at(step, "method"), step, "after");
  print_table(out, {"", "layers", "parameters", "change", "bytes"}, rows);
  out << '\n';
}

std::optional<OrderedJson> record_of(const fs::path& checkpoint) {
  const fs::path file = checkpoint / "dynslice.json";
  std::error_code error;
  if (!fs::exists(file, error)) return std::nullopt;
  const std::string text = read_file(file);
  parse_json(text, file.string());
  return OrderedJson::parse(text);
}

// ---- the run

class RecipeRun {
 public:
  RecipeRun(const RunOptions& options, const Recipe& recipe, const Checkpoint& checkpoint, const fs::path& output,
            TerminalProgress& progress, std::ostream& out)
      : options_(options),
        recipe_(recipe),
        output_(output),
        steps_(plan_steps(recipe, plain_argument(options.common.model), output)),
        writers_(static_cast<size_t>(
            std::count_if(steps_.begin(), steps_.end(), [](const Step& step) { return step.writes(); }))),
        progress_(progress),
        out_(out),
        folder_(steps_folder(output)),
        work_folder_(std::make_shared<WorkFolder>(folder_.path() / "journal")) {
    const ComputeOptions compute = resolve_compute(options.common.device, options.common.dtype);
    fingerprint_ = fingerprint(options.common, compute, checkpoint, nullptr, {});
    description_ = describe_run(options.common, compute, checkpoint);
  }

  void run() {
    if (options_.common.resume && was_finished()) {
      log(LogLevel::kInfo, output_.string() + ": was finished by the run before; nothing is left to do");
      work_folder_->open_existing();  // and removed, if it was left
      for (const Step& step : steps_) add_result(step, OrderedJson());
      report();
      return;
    }
    check_ways();
    open_journal();
    if (!options_.common.json) print_description(out_, recipe_);
    for (const Step& step : steps_) take(step);
    report();
    journal_->remove_files();
  }

 private:
  // Whether a run of this recipe was stopped after its last step.
  bool was_finished() const {
    if (writers_ == 0 || Journal::is_in(work_folder_->path())) return false;
    const auto record = record_of(output_);
    if (!record) return false;
    const auto job = [](std::vector<std::string> words) {
      words.erase(words.begin());  // the program, which may be called by another path
      return job_command_line(words, false);
    };
    try {
      const OrderedJson done = own_steps(*record, writers_);
      size_t next = 0;
      for (const Step& step : steps_) {
        if (!step.writes()) continue;
        const auto words = done.at(next++).at("command_line").get<std::vector<std::string>>();
        if (words.empty() || job(words) != job(words_of(options_, step))) return false;
      }
      return true;
    } catch (const Json::exception&) {
      return false;  // fewer commands, or not of this program
    }
  }

  // What is in the way is not to be found after hours.
  void check_ways() const {
    if (options_.common.force || Journal::is_in(work_folder_->path())) return;
    for (const Step& step : steps_) {
      if (step.writes() && !step.is_last) check_output(step.output, false);
    }
    if (writers_ > 0 && !options_.common.resume && Journal::is_in(CheckpointWriter::partial_folder(output_))) {
      throw_error(ErrorKind::kUsage, CheckpointWriter::partial_folder(output_).string(),
                  ": another run was stopped there; choose another folder with -o, or drop it with --force");
    }
  }

  void open_journal() {
    JournalOptions journaling = journal_options(options_.common);
    if (journaling.pace == JournalPace::kAuto) journaling.pace = JournalPace::kEvery;  // steps are few
    journal_ = std::make_unique<Journal>(work_folder_, fingerprint_, description_, journaling);
    goes_on_ = options_.common.resume;
    if (journal_->is_resumed()) return;
    rehearse();
    work_folder_->open();
    journal_->finish("reading the recipe", OrderedJson::object());
  }

  // Finds out, on the original model, whether all steps could begin, so that a wrong option of the last one is not
  // found after hours. Too little memory is no error here: the model will be smaller by then.
  void rehearse() const {
    const MutedLog muted;
    TerminalProgress quiet(true);
    for (Step step : steps_) {
      const bool waits = std::any_of(steps_.begin(), steps_.begin() + static_cast<int64_t>(step.number) - 1,
                                     [&](const Step& earlier) { return reads_file_of(step, earlier); });
      if (waits || !step.recipe->has_option("--dry-run")) continue;
      step.model = steps_.front().model;
      const bool force = options_.common.force || !step.is_last;
      try {
        run_step(options_, recipe_, step, {.force = force, .dry_run = true, .rehearsal = true}, quiet);
      } catch (const Error& error) {
        if (error.kind() == ErrorKind::kOutOfResources) continue;
        throw Error(error.kind(), step.title + ": " + error.what());
      }
    }
  }

  void take(const Step& step) {
    if (!options_.common.json) print_heading(out_, step, words_of(options_, step));
    auto result = kept_result(step);
    if (!result) {
      result = work(step);
      journal_->finish(phase_of(step), *result);
    }
    ++finished_;
    if (!options_.common.json) out_ << result->value("text", "") << std::flush;
    add_result(step, result->value("json", OrderedJson()));
    if (step.writes() && !options_.keep_steps) remove_before(step);
  }

  static std::string phase_of(const Step& step) { return "step " + std::to_string(step.number); }

  // What decides the result of a step, besides what decides that of all steps.
  static std::string job_of(const Step& step) {
    return shell_line(step_words(*step.recipe, "dynslice", "", step.output.string(), {}));
  }

  // What the step gave in the run that was stopped.
  std::optional<OrderedJson> kept_result(const Step& step) const {
    auto kept = journal_->result(phase_of(step));
    if (!kept) return std::nullopt;
    if (const std::string job = kept->value("job", ""); job != job_of(step)) {
      throw_error(ErrorKind::kUsage, options_.recipe, ": ", step.title, " is `", job_of(step), "` and was `", job,
                  "` when it was done; only steps after it may be changed, or start over with --force");
    }
    if (kept->contains(options_.common.json ? "json" : "text")) return kept;
    if (!step.writes()) return std::nullopt;  // what it printed was for the other reader
    (*kept)["text"] = "Done by an earlier run.\n";
    (*kept)["json"] = record_of(step.output).value_or(OrderedJson());
    return kept;
  }

  OrderedJson work(const Step& step) {
    return_freed_memory();  // what the step before needed would count as taken
    peak_ = std::max(peak_, peak_rss_bytes());
    reset_peak_rss();
    const bool was_done = journal_->result(phase_of(step)).has_value();  // and is done again for what it prints
    const bool goes_on = !was_done && std::exchange(goes_on_, false) && step.recipe->has_option("--resume");
    OrderedJson result = {{"job", job_of(step)}};
    try {
      check_interrupt();
      const std::string text =
          run_step(options_, recipe_, step, {.resume = goes_on, .force = may_replace(step, goes_on)}, progress_);
      result[options_.common.json ? "json" : "text"] = options_.common.json ? parse_result(text) : OrderedJson(text);
    } catch (const Error& error) {
      fail(step, error);
    }
    return result;
  }

  // The folders between the steps are this run's own, and so is what an earlier run of a step left in the cache.
  bool may_replace(const Step& step, bool goes_on) const {
    if (step.is_last || !step.recipe->has_option("--resume")) return options_.common.force;
    return !goes_on;
  }

  // Says which step did not come to its end, and how to go on when there is something to go on from.
  [[noreturn]] void fail(const Step& step, const Error& error) {
    const std::string command = resuming_command(options_.common);
    std::string message = step.title + ": " + error.what();
    const bool says_how = std::string_view(error.what()).ends_with(command);
    if (finished_ == 0 && !says_how) {
      journal_->remove_files();
    } else if (journal_->has_state() && !says_how) {
      message += "; to go on with this step: " + command;
    }
    throw Error(error.kind(), message);
  }

  void add_result(const Step& step, OrderedJson json) {
    if (json.is_object()) {
      for (const char* key : {"since_original", "steps", "source_record"}) json.erase(key);  // said step by step
    }
    results_.push_back(
        {{"verb", step.recipe->verb.name}, {"command_line", words_of(options_, step)}, {"result", std::move(json)}});
  }

  void remove_before(const Step& step) const {
    for (const Step& earlier : steps_) {
      if (earlier.number >= step.number || !earlier.writes()) continue;
      std::error_code error;
      fs::remove_all(earlier.output, error);
      if (error) log(LogLevel::kWarning, earlier.output.string() + ": cannot be removed: " + error.message());
    }
  }

  void report() const {
    const std::chrono::duration<double> here = std::chrono::steady_clock::now() - start_;
    const double seconds = here.count() + (journal_ ? journal_->earlier_seconds() : 0);
    const uint64_t peak = std::max(peak_, peak_rss_bytes());
    const auto record = writers_ > 0 ? record_of(output_) : std::nullopt;
    if (options_.common.json) {
      OrderedJson json = begin_json(options_, recipe_);
      json["model"] = description_.at("model");
      json["steps"] = results_;
      if (record) json.update(change_of(own_steps(*record, writers_)));
      json["wall_seconds"] = seconds;
      json["peak_rss_bytes"] = peak;
      json["output"] = record ? OrderedJson(output_.string()) : OrderedJson();
      out_ << to_text(json);
      return;
    }
    out_ << '\n';
    if (record) print_sizes_by_step(out_, own_steps(*record, writers_));
    out_ << "All " << steps_.size() << " steps: " << format_duration(seconds) << ", peak memory " << format_bytes(peak)
         << ".\n";
    if (record) print_written(out_, options_.common, output_);
  }

  const RunOptions& options_;
  const Recipe& recipe_;
  const fs::path output_;
  const std::vector<Step> steps_;
  const size_t writers_;  // steps that write a checkpoint
  TerminalProgress& progress_;
  std::ostream& out_;
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

void run(const RunOptions& given, TerminalProgress& progress, std::ostream& out) {
  Recipe recipe = read_recipe(given.recipe, given.handed);
  RunOptions options = given;
  if (options.common.model.empty()) options.common.model = recipe.model;
  if (options.check) {
    print_check(out, options, recipe);
    return;
  }
  const auto checkpoint = open_model(options.common, progress);
  const std::string& model = options.common.model;
  name_model(recipe, model.empty() ? checkpoint->path().string() : plain_argument(model));
  const bool writes = std::any_of(recipe.steps.begin(), recipe.steps.end(),
                                  [](const RecipeStep& step) { return step.writes_checkpoint(); });
  if (!writes && !options.output.empty())
    throw_error(ErrorKind::kUsage, "-o ", options.output, ": no step of ", options.recipe, " writes a checkpoint");
  const std::string suffix = recipe.file.stem().string();
  const fs::path output = writes ? checkpoint_folder(options.output, options.common, *checkpoint, suffix)
                                 : fs::path(model_name(options.common, *checkpoint) + "-" + suffix);
  const fs::path plain_output = plain_argument(output.string());
  if (options.common.dry_run) {
    foretell(options, recipe, plan_steps(recipe, plain_argument(model), plain_output), progress, out);
    return;
  }
  RecipeRun(options, recipe, *checkpoint, plain_output, progress, out).run();
}

}  // namespace dynslice::cli
