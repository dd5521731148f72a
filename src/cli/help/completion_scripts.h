// The parts of completion scripts that no verb and no option changes: src/cli/help/completion.bash, .zsh and .fish.
#pragma once

#include <string_view>

namespace dynslice::cli {

extern const std::string_view kBashScript;
extern const std::string_view kZshScript;
extern const std::string_view kFishScript;  // with OPTIONS_WITH_A_VALUE and VERBS in the places of these

}  // namespace dynslice::cli
