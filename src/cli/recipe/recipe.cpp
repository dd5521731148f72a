#include "cli/recipe/recipe.h"

#include <algorithm>
#include <set>
#include <sstream>

#include "cli/options/parse.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/json.h"

namespace dynslice::cli {
namespace {

constexpr int64_t kFormat = 1;

const OptionReference* find_option(const VerbReference& verb, const std::string& name) {
  for (const OptionReference& option : verb.options) {
    if (option.names.back() == name) return &option;
  }
  return nullptr;
}

// A verb that has a model to work on, and is no recipe itself.
bool is_step(const VerbReference& verb) {
  const auto is_model = [](const OptionReference& argument) { return argument.names.front() == "MODEL"; };
  return verb.name != "run" && verb.verbs.empty() &&
         std::any_of(verb.positionals.begin(), verb.positionals.end(), is_model);
}

// What sliced models, whose layers work in bases of their own, are refused by.
bool wants_dense(const std::string& verb) {
  return verb == "score" || verb == "plan" || verb == "slice" || verb.starts_with("depth ");
}

// Reads one step; `where` names it in messages.
class StepReader {
 public:
  StepReader(const OrderedJson& json, std::string where) : json_(json), where_(std::move(where)) {}

  RecipeStep read(const VerbReference& program) {
    if (!json_.is_object()) fail("must be an object such as {\"verb\": \"slice\", \"avg\": \"25%\"}");
    RecipeStep step;
    step.verb = find_verb(program);
    where_ += " (" + step.verb.name + ")";
    for (const auto& [key, value] : json_.items()) {
      if (key != "verb") add_option(step, key, value);
    }
    return step;
  }

  [[noreturn]] void fail(const std::string& what) const { throw_error(ErrorKind::kBadInput, where_, ": ", what); }

 private:
  VerbReference find_verb(const VerbReference& program) const {
    const auto named = json_.find("verb");
    if (named == json_.end() || !named->is_string()) fail("key \"verb\" must name the verb, such as \"depth merge\"");
    std::string known;
    for (const VerbReference* verb : all_verbs(program)) {
      if (!is_step(*verb)) continue;
      if (verb->name == named->get<std::string>()) return *verb;
      known += (known.empty() ? "" : ", ") + verb->name;
    }
    fail("\"" + named->get<std::string>() + "\" is no verb that a step can be; those are: " + known);
  }

  void add_option(RecipeStep& step, const std::string& key, const OrderedJson& value) const {
    static const std::set<std::string> kOfRun = {"json",  "quiet",   "verbose", "log-file", "resume",
                                                 "force", "dry-run", "help",    "help-all"};
    if (key == "model")
      fail("key \"model\": a step works on what the steps before it made; \"model\" stands beside \"steps\"");
    if (key == "output" && step.writes_checkpoint()) fail("key \"output\": -o of `dynslice run` names the folder");
    if (step.verb.name == "quantize" && (key == "gguf" || key == "sweep"))
      fail("key \"" + key +
           "\": a step of quantize writes a checkpoint folder; run `dynslice quantize` by itself for that");
    if (kOfRun.contains(key)) fail("key \"" + key + "\" belongs to `dynslice run`, not to a step");
    const OptionReference* option = find_option(step.verb, "--" + key);
    if (option == nullptr) {
      fail("key \"" + key + "\": there is no option --" + key + "; `dynslice " + step.verb.name +
           " --help-all` names all");
    }
    if (option->value) {
      step.options.emplace_back("--" + key, text_of(key, value));
    } else if (!value.is_boolean()) {
      fail("key \"" + key + "\" must be true or false, found " + value.dump());
    } else if (value.get<bool>()) {
      step.options.emplace_back("--" + key, "");
    }
  }

  std::string text_of(const std::string& key, const OrderedJson& value) const {
    const std::string text = value.is_string() ? value.get<std::string>() : value.is_number() ? value.dump() : "";
    if (text.empty()) fail("key \"" + key + "\" must be a string or a number, found " + value.dump());
    return text;
  }

  const OrderedJson& json_;
  std::string where_;
};

std::string optional_text(const OrderedJson& json, const std::string& key, const std::string& where) {
  const auto found = json.find(key);
  if (found == json.end()) return "";
  if (!found->is_string()) throw_error(ErrorKind::kBadInput, where, ": key \"", key, "\" must be a string");
  return found->get<std::string>();
}

void check_format(const OrderedJson& json, const std::string& where) {
  static const std::set<std::string> kKeys = {"recipe", "description", "model", "steps"};
  const auto fail = [&](const std::string& what) { throw_error(ErrorKind::kBadInput, where, ": ", what); };
  if (!json.is_object()) fail("a recipe must be an object with the keys \"recipe\" and \"steps\"");
  if (!json.contains("recipe") || json.at("recipe") != kFormat) {
    fail("key \"recipe\" must be 1, the version of the format, found " +
         (json.contains("recipe") ? json.at("recipe").dump() : "nothing"));
  }
  for (const auto& [key, value] : json.items()) {
    if (!kKeys.contains(key)) fail("key \"" + key + "\" is none of recipe, description, model and steps");
  }
  if (!json.contains("steps") || !json.at("steps").is_array() || json.at("steps").empty()) {
    fail("key \"steps\" must be a list of at least one step");
  }
}

}  // namespace

bool RecipeStep::has_option(const std::string& name) const { return find_option(verb, name) != nullptr; }

bool RecipeStep::writes_checkpoint() const {
  const OptionReference* output = find_option(verb, "--output");
  return output != nullptr && output->value && output->value->path == PathKind::kFolder;
}

Recipe read_recipe(const std::filesystem::path& file, const OptionValues& handed) {
  const std::string where = file.string();
  const std::string text = read_file(file);
  parse_json(text, where);  // says what is wrong with it
  const OrderedJson json = OrderedJson::parse(text);
  check_format(json, where);
  Recipe recipe{file, optional_text(json, "description", where), optional_text(json, "model", where), {}};
  const VerbReference program = describe_program();
  std::string slicing, adapter;  // the steps that did it
  for (const OrderedJson& step_json : json.at("steps")) {
    const std::string name = "step " + std::to_string(recipe.steps.size() + 1);
    StepReader reader(step_json, where + ": " + name);
    RecipeStep step = reader.read(program);
    if (!slicing.empty() && wants_dense(step.verb.name)) {
      reader.fail("needs a dense model, and " + slicing + " slices; put it before that");
    }
    if (!adapter.empty())
      reader.fail("needs a model, and " + adapter + " writes an adapter; let that be the last step");
    if (step.verb.name == "slice") slicing = name;
    const auto is_adapter = [](const auto& option) { return option.first == "--adapter"; };
    if (std::any_of(step.options.begin(), step.options.end(), is_adapter)) adapter = name;
    try {
      parse_words(step_words(step, "dynslice", "MODEL", step.writes_checkpoint() ? "OUTPUT" : "", handed));
    } catch (const Error& error) {
      reader.fail(error.what());
    }
    recipe.steps.push_back(std::move(step));
  }
  return recipe;
}

void name_model(Recipe& recipe, const std::string& model) {
  for (RecipeStep& step : recipe.steps) {
    for (auto& [name, value] : step.options) {
      const OptionReference* option = find_option(step.verb, name);
      if (value == "MODEL" && option->value && option->value->path == PathKind::kModel) value = model;
    }
  }
}

std::vector<std::string> step_words(const RecipeStep& step, const std::string& program, const std::string& model,
                                    const std::string& output, const OptionValues& handed) {
  std::vector<std::string> words = {program};
  std::istringstream verb(step.verb.name);
  for (std::string word; verb >> word;) words.push_back(word);
  if (!model.empty()) words.push_back(model);
  const auto add = [&](const std::string& name, const std::string& value) {
    if (value.starts_with('-')) {  // would be taken for an option
      words.push_back(name + "=" + value);
      return;
    }
    words.push_back(name);
    if (!value.empty()) words.push_back(value);
  };
  const auto is_handed = [&](const std::string& name) {
    return std::any_of(handed.begin(), handed.end(), [&](const auto& option) { return option.first == name; });
  };
  for (const auto& [name, value] : step.options) {
    if (!is_handed(name)) add(name, value);
  }
  for (const auto& [name, value] : handed) {
    if (step.has_option(name)) add(name, value);
  }
  if (!output.empty()) add("-o", output);
  return words;
}

}  // namespace dynslice::cli
