#include "cli/help/reference.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cstdio>
#include <fstream>

#include "cli/options/groups.h"
#include "cli/options/parse.h"
#include "unit/support/temporary_folder.h"

namespace dynslice::cli {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

// Verbs below verbs, and options of every kind.
class Reference : public ::testing::Test {
 protected:
  Reference() {
    depth_->require_subcommand(1);
    CLI::App* drop = depth_->add_subcommand("drop", "Remove layers: the [redundant] ones");
    drop->add_option("MODEL", model_, "what to cut")->type_name("MODEL");
    CLI::Option* layers = drop->add_option("--layers", layers_, "how many layers go")->default_str("2");
    CLI::Option* replace = drop->add_option("--replace", replace_, "what takes their place (default: none)")
                               ->check(CLI::IsMember({"none", "linear"}));
    drop->add_option("--tasks", tasks_, "it's a list")->type_name("piqa|arc");
    drop->add_option("--trace", replace_, "for developers")->group("");
    CLI::Option* note = drop->add_option("--note", replace_, "an option of which nothing is said");
    drop->add_flag("-f,--force", force_, "replace what is there");
    layers->group(basic(Group::kHowMuch));
    replace->group(basic(Group::kWhat))->excludes(layers)->excludes(note);
    note->group(advanced(Group::kWhat));
    drop->get_option("--tasks")->group(advanced(Group::kText));
    drop->get_option("--force")->group(basic(Group::kOutput));
    app_.add_subcommand("secret", "Hidden")->group("");
  }

  OptionReference option(const std::string& name) {
    const VerbReference program = describe_command_line(app_);
    for (const OptionReference& option : program.verbs.front().verbs.front().options) {
      if (option.names.back() == name) return option;
    }
    throw std::runtime_error("no option " + name);
  }

  CLI::App app_{"makes models smaller", "dynslice"};
  CLI::App* depth_ = app_.add_subcommand("depth", "Whole layers");
  std::string model_, replace_;
  std::vector<std::string> tasks_;
  int layers_ = 0;
  bool force_ = false;
};

TEST_F(Reference, ListsVerbsBelowVerbsAndLeavesHiddenOnesOut) {
  const VerbReference program = describe_command_line(app_);
  std::vector<std::string> names;
  for (const VerbReference* verb : all_verbs(program)) names.push_back(verb->name);
  EXPECT_THAT(names, ElementsAre("", "depth", "depth drop"));
  EXPECT_THROW(option("--trace"), std::runtime_error);
}

TEST_F(Reference, TakesValuesFromValidatorsAndTypeNames) {
  EXPECT_THAT(option("--replace").value->values, ElementsAre("none", "linear"));
  EXPECT_EQ(option("--replace").value->shown, "none|linear");
  EXPECT_EQ(option("--layers").value->shown, "N");
  EXPECT_THAT(option("--tasks").value->values, ElementsAre("piqa", "arc"));
  EXPECT_TRUE(option("--tasks").repeats);
  EXPECT_FALSE(option("--force").value.has_value());
}

TEST_F(Reference, OffersFilesWhereNothingIsSaidOfAValue) {
  EXPECT_EQ(option("--note").value->path, PathKind::kFile);
  EXPECT_EQ(option("--replace").value->path, PathKind::kNone);
}

TEST_F(Reference, FindsTheDefaultWhereverItWasGiven) {
  EXPECT_EQ(option("--layers").default_text, "2");
  EXPECT_EQ(option("--replace").default_text, "none");
  EXPECT_EQ(option("--replace").help, "what takes their place");
}

TEST_F(Reference, ShowsTheSameInHelp) {
  set_help_format(app_);
  const std::string help = depth_->get_subcommand("drop")->help("", CLI::AppFormatMode::All);
  EXPECT_THAT(help, AllOf(HasSubstr("--replace none|linear"), HasSubstr("what takes their place (default: none"),
                          HasSubstr("--tasks piqa|arc ..."), Not(HasSubstr("--trace"))));
}

std::vector<std::string> titles(const VerbReference& verb) {
  std::vector<std::string> titles;
  for (const OptionGroup& group : groups_of(verb)) titles.push_back(group.title);
  return titles;
}

TEST_F(Reference, OrdersOptionsByGroupAndShowsTheBasicOnesFirst) {
  set_help_format(app_);
  const VerbReference drop = describe_command_line(*depth_->get_subcommand("drop"));
  EXPECT_EQ(drop.name, "depth drop");
  EXPECT_THAT(titles(drop), ElementsAre("What", "How much", "Text", "Output", "Help"));
  EXPECT_EQ(drop.options.at(0).names.back(), "--replace");
  EXPECT_EQ(drop.options.at(1).names.back(), "--note");
  EXPECT_FALSE(drop.options.at(1).is_basic);
}

TEST_F(Reference, PutsOptionsOfNoGroupLast) {
  depth_->get_subcommand("drop")->add_flag("--stray", force_, "of no group");
  const VerbReference program = describe_command_line(app_);
  EXPECT_EQ(titles(program.verbs.front().verbs.front()).back(), "Options");
  EXPECT_EQ(option("--stray").group, "Options");
}

TEST_F(Reference, TellsAnExclusionOnceWithTheOptionThatExcludesMost) {
  EXPECT_THAT(option("--replace").excludes, ElementsAre("--layers", "--note"));
  EXPECT_THAT(option("--replace").told_excludes, ElementsAre("--layers", "--note"));
  EXPECT_THAT(option("--layers").excludes, ElementsAre("--replace"));
  EXPECT_THAT(option("--layers").told_excludes, ElementsAre());
  EXPECT_THAT(option("--note").told_excludes, ElementsAre());
}

TEST_F(Reference, HelpShowsBasicOptionsAndSaysHowManyMoreThereAre) {
  set_help_format(app_);
  const CLI::App& drop = *depth_->get_subcommand("drop");
  const std::string help = drop.help(), all = drop.help("", CLI::AppFormatMode::All);
  EXPECT_THAT(help, AllOf(HasSubstr("\nWhat:\n  --replace"), HasSubstr("(default: none; not with --layers)"),
                          Not(HasSubstr("--note")), Not(HasSubstr("--tasks")), Not(HasSubstr("Text:"))));
  EXPECT_THAT(help, EndsWith("\nRun `dynslice depth drop --help-all` to see 2 more options.\n"));
  EXPECT_THAT(all, AllOf(HasSubstr("--note"), HasSubstr("\nText:\n  --tasks"), Not(HasSubstr("more option"))));
}

TEST_F(Reference, HelpAllOfAProgramTellsAllOfItsVerbs) {
  set_help_format(app_);
  EXPECT_THAT(app_.help(), Not(HasSubstr("--replace")));
  EXPECT_THAT(app_.help("", CLI::AppFormatMode::All), AllOf(HasSubstr("Usage: dynslice depth drop [MODEL] [OPTIONS]"),
                                                            HasSubstr("--note"), Not(HasSubstr("Hidden"))));
}

TEST(Definitions, EveryOptionHasAGroup) {
  const VerbReference program = describe_program();
  for (const VerbReference* verb : all_verbs(program)) {
    for (const OptionReference& option : verb->options)
      EXPECT_NE(option.group, "Options") << verb->name << " " << option.names.back();
  }
}

TEST(Definitions, EveryExclusionIsToldOnce) {
  const VerbReference program = describe_program();
  for (const VerbReference* verb : all_verbs(program)) {
    size_t sides = 0, told = 0;
    for (const OptionReference& option : verb->options) {
      sides += option.excludes.size();
      told += option.told_excludes.size();
    }
    EXPECT_EQ(sides, 2 * told) << verb->name;
  }
}

TEST(Groups, AreReadFromWhatOptionsWereGiven) {
  for (const Group group : {Group::kWhat, Group::kHowMuch, Group::kTraining, Group::kSweep, Group::kText,
                            Group::kOutput, Group::kMachine, Group::kHelp}) {
    EXPECT_EQ(place_of(basic(group))->group, group);
    EXPECT_TRUE(place_of(basic(group))->is_basic);
    EXPECT_EQ(place_of(advanced(group))->group, group);
    EXPECT_FALSE(place_of(advanced(group))->is_basic);
  }
  EXPECT_FALSE(place_of("Options").has_value());
}

// What the bash function answers when `words` are typed, the last of them in part.
std::string complete_in_bash(const std::string& script, const std::string& words) {
  const testing::TemporaryFolder folder;
  std::ofstream(folder.path() / "completion") << script;
  const std::string command = "bash --norc -c 'source " + (folder.path() / "completion").string() + "; COMP_WORDS=(" +
                              words + "); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _dynslice; echo \"${COMPREPLY[*]}\"'";
  FILE* pipe = ::popen(command.c_str(), "r");
  std::array<char, 4096> buffer{};
  const size_t size = std::fread(buffer.data(), 1, buffer.size(), pipe);
  ::pclose(pipe);
  return {buffer.data(), size};
}

TEST_F(Reference, CompletesVerbsBelowVerbsInBash) {
  const std::string script = bash_completion(describe_command_line(app_));
  EXPECT_EQ(complete_in_bash(script, "dynslice d"), "depth\n");
  EXPECT_EQ(complete_in_bash(script, "dynslice depth d"), "drop\n");
  EXPECT_EQ(complete_in_bash(script, "dynslice depth drop --rep"), "--replace\n");
  EXPECT_EQ(complete_in_bash(script, "dynslice depth drop --replace = li"), "linear\n");
}

TEST_F(Reference, QuotesWhatTheShellsWouldTakeForTheirOwn) {
  const VerbReference program = describe_command_line(app_);
  EXPECT_THAT(zsh_completion(program),
              AllOf(HasSubstr("it'\\''s a list"), HasSubstr("drop:Remove layers\\: the \\[redundant\\] ones"),
                    HasSubstr("_dynslice_depth_drop()")));
  EXPECT_THAT(fish_completion(program),
              AllOf(HasSubstr("it\\'s a list"), HasSubstr("-n '__dynslice_at \\'depth drop\\''")));
  EXPECT_THAT(
      markdown_options(program),
      HasSubstr("| `--replace none\\|linear` | what takes their place. Not together with --layers, --note. | none |"));
  EXPECT_THAT(man_page(program), HasSubstr("\\fB\\-\\-replace\\fR \\fInone|linear\\fR"));
}

}  // namespace
}  // namespace dynslice::cli
