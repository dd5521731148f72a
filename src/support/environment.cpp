#include "dynslice/support/environment.h"

#include <cstdlib>

namespace dynslice {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

std::filesystem::path cache_folder() {
  if (const std::string cache = environment("DYNSLICE_CACHE"); !cache.empty()) return cache;
  if (const std::string cache = environment("XDG_CACHE_HOME"); !cache.empty()) {
    return std::filesystem::path(cache) / "dynslice";
  }
  return std::filesystem::path(environment("HOME")) / ".cache" / "dynslice";
}

}  // namespace dynslice
