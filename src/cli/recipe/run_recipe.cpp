// `run`: the steps of a recipe, one after the other in this process, each on what the ones before it made.
#include <algorithm>

#include "cli/recipe/recipe_steps.h"
#include "cli/show/written.h"
#include "cli/verbs/verbs.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/support/error.h"

namespace dynslice::cli {
namespace {

namespace fs = std::filesystem;

// Names that begin with a dash would be taken for options.
std::string plain_argument(const std::string& path) { return path.starts_with('-') ? "./" + path : path; }

void print_heading(std::ostream& out, const std::string& title, const std::vector<std::string>& words) {
  out << "\n== " << title << ": " << shell_line(words) << '\n' << std::flush;
}

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
      text = job_of(options, recipe, step, progress).run({.force = options.common.force, .dry_run = true});
  } catch (const Error& error) {
    if (step.on_original) throw Error(error.kind(), step.title + ": " + error.what());
    json["error"] = error.what();
    if (!options.common.json) out << "Cannot be foretold: " << error.what() << '\n';
  }
  if (options.common.json) {
    json["needs"] = text.empty() ? OrderedJson() : OrderedJson::parse(text);
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
  for (const Step& step : steps) {
    if (!options.common.json) print_heading(out, step.title, words_of(options, step));
    if (!options.common.json && !step.on_original)
      out << "(what it will work on does not exist yet: this is what the original model would need)\n";
    json["steps"].push_back(foretell_step(options, recipe, step, progress, out));
  }
  if (options.common.json) out << to_text(json);
}

// ---- the report

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

void report(const RunOptions& options, const Recipe& recipe, const RecipeResult& done, const fs::path& output,
            std::ostream& out) {
  if (options.common.json) {
    OrderedJson json = begin_json(options, recipe);
    json["model"] = done.model;
    json["steps"] = done.results;
    if (done.own_steps) json.update(change_of(*done.own_steps));
    json["wall_seconds"] = done.seconds;
    json["peak_rss_bytes"] = done.peak_bytes;
    json["output"] = done.own_steps ? OrderedJson(output.string()) : OrderedJson();
    out << to_text(json);
    return;
  }
  out << '\n';
  if (done.own_steps) print_sizes_by_step(out, *done.own_steps);
  out << "All " << recipe.steps.size() << " steps: " << format_duration(done.seconds) << ", peak memory "
      << format_bytes(done.peak_bytes) << ".\n";
  if (done.own_steps) print_written(out, options.common, output);
}

void run_steps(const RunOptions& options, const Recipe& recipe, const Checkpoint& original, const fs::path& output,
               TerminalProgress& progress, std::ostream& out) {
  RecipeRequest request;
  request.common = options.common;
  request.recipe = options.recipe;
  request.output = output;
  request.keep_steps = options.keep_steps;
  for (const Step& step : plan_steps(recipe, plain_argument(options.common.model), output))
    request.steps.push_back(job_of(options, recipe, step, progress));
  if (!options.common.json) {
    request.on_step = [&](const JobStep& step) {
      if (&step == request.steps.data()) print_description(out, recipe);
      print_heading(out, step.title, step.command_line);
    };
    request.on_text = [&](const std::string& text) { out << text << std::flush; };
  }
  report(options, recipe, run(request, original), output, out);
}

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
  run_steps(options, recipe, *checkpoint, plain_output, progress, out);
}

}  // namespace dynslice::cli
