#include "cli/options/groups.h"

#include <array>
#include <string_view>

namespace dynslice::cli {
namespace {

// As in Group.
constexpr std::array<const char*, 8> kTitles = {"What", "How much", "Training", "Sweep",
                                                "Text", "Output",   "Machine",  "Help"};
// CLI11 keeps one text with an option: the title, and for advanced ones this behind it.
constexpr std::string_view kAdvanced = " (advanced)";

}  // namespace

std::string title_of(Group group) { return kTitles.at(static_cast<size_t>(group)); }

std::string basic(Group group) { return title_of(group); }

std::string advanced(Group group) { return title_of(group) + std::string(kAdvanced); }

std::optional<Place> place_of(const std::string& group_text) {
  for (size_t i = 0; i < kTitles.size(); ++i) {
    const auto group = static_cast<Group>(i);
    if (group_text == basic(group)) return Place{group, true};
    if (group_text == advanced(group)) return Place{group, false};
  }
  return std::nullopt;
}

}  // namespace dynslice::cli
