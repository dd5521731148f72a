// The groups that a verb's options are shown in, and which of them --help shows. Every option says where it is defined
// which group it belongs to: `->group(basic(Group::kText))`.
#pragma once

#include <optional>
#include <string>

namespace dynslice::cli {

// In the order in which they are shown.
enum class Group { kWhat, kHowMuch, kTraining, kSweep, kText, kOutput, kMachine, kHelp };

struct Place {
  Group group = Group::kWhat;
  bool is_basic = true;
};

// "How much": the heading of the group.
std::string title_of(Group group);

// For CLI::Option::group: of an option that most people need, which --help shows; of one that --help-all adds.
std::string basic(Group group);
std::string advanced(Group group);

// What the two above were given; nothing for any other text.
std::optional<Place> place_of(const std::string& group_text);

}  // namespace dynslice::cli
