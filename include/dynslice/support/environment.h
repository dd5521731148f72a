// Environment variables, and the cache folder that they decide.
#pragma once

#include <filesystem>
#include <string>

namespace dynslice {

// The variable's value; empty when it is not set.
[[nodiscard]] std::string environment(const char* name);

// Where downloads of dynslice's own are kept: $DYNSLICE_CACHE, else $XDG_CACHE_HOME/dynslice, else ~/.cache/dynslice.
[[nodiscard]] std::filesystem::path cache_folder();

}  // namespace dynslice
