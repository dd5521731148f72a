#include "dynslice/support/machine.h"

#include <malloc.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <limits>
#include <optional>
#include <string_view>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;
constexpr uint64_t kUnknown = std::numeric_limits<uint64_t>::max();

// The number that a file begins with; "max" and anything else: none.
std::optional<uint64_t> read_number(const fs::path& file) {
  std::ifstream stream(file);
  uint64_t value = 0;
  if (stream >> value) return value;
  return std::nullopt;
}

// The number after `key` in a file of "key number" lines.
std::optional<uint64_t> read_field(const fs::path& file, const std::string& key) {
  std::ifstream stream(file);
  std::string name;
  uint64_t value = 0;
  while (stream >> name) {
    if (name == key && stream >> value) return value;
    stream.clear();
    stream.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::nullopt;
}

// How the two versions of the cgroup interface call things.
struct CgroupFiles {
  const char* limit;
  const char* usage;
  const char* inactive_cache;  // of memory.stat: what the kernel drops first
};
constexpr CgroupFiles kVersion1{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"};
constexpr CgroupFiles kVersion2{"memory.max", "memory.current", "inactive_file"};

// What the limits of `group` and its parents, below the mount point, leave.
uint64_t left_in_cgroup(const fs::path& mount, const fs::path& group, const CgroupFiles& files) {
  uint64_t least = kUnknown;
  for (fs::path place = group.relative_path();; place = place.parent_path()) {
    const fs::path folder = mount / place;
    const auto limit = read_number(folder / files.limit), usage = read_number(folder / files.usage);
    if (limit && usage) {
      const uint64_t cache = read_field(folder / "memory.stat", files.inactive_cache).value_or(0);
      const uint64_t used = *usage - std::min(*usage, cache);
      least = std::min(least, *limit - std::min(*limit, used));
    }
    if (place.empty()) return least;
  }
}

uint64_t left_in_cgroups(const fs::path& root) {
  uint64_t least = kUnknown;
  std::ifstream stream(root / "proc/self/cgroup");
  for (std::string line; std::getline(stream, line);) {  // "4:memory:/group" or "0::/group"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const fs::path group = line.substr(second + 1), mounts = root / "sys/fs/cgroup";
    if (controllers == ",,") {
      least = std::min(least, left_in_cgroup(mounts, group, kVersion2));
      least = std::min(least, left_in_cgroup(mounts / "unified", group, kVersion2));
    } else if (controllers.find(",memory,") != std::string::npos) {
      least = std::min(least, left_in_cgroup(mounts / "memory", group, kVersion1));
    }
  }
  return least;
}

}  // namespace

uint64_t available_memory_bytes(const fs::path& root) {
  const auto kilobytes = read_field(root / "proc/meminfo", "MemAvailable:");
  const uint64_t machine =
      kilobytes ? *kilobytes * 1024
                : static_cast<uint64_t>(::sysconf(_SC_AVPHYS_PAGES)) * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  return std::min(machine, left_in_cgroups(root));
}

uint64_t current_rss_bytes() {
  std::ifstream stream("/proc/self/statm");
  uint64_t total = 0, resident = 0;
  stream >> total >> resident;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

uint64_t peak_rss_bytes() {
  // Of this program's memory alone; getrusage begins with what the parent had when it started us.
  if (const auto kilobytes = read_field("/proc/self/status", "VmHWM:")) return *kilobytes * 1024;
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

void reset_peak_rss() { std::ofstream("/proc/self/clear_refs") << "5"; }

void return_freed_memory() { ::malloc_trim(0); }

uint64_t available_disk_bytes(const fs::path& path) {
  std::error_code error;
  fs::path place = fs::absolute(path, error);
  while (!fs::exists(place, error) && place.has_relative_path()) place = place.parent_path();
  struct statvfs disk{};
  if (::statvfs(place.c_str(), &disk) != 0) return kUnknown;
  return static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize;
}

uint64_t parse_byte_size(const std::string& option, const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  while (unit.starts_with(' ')) unit.remove_prefix(1);
  if (unit.ends_with('B') || unit.ends_with('b')) unit.remove_suffix(1);
  const bool binary = unit.size() == 2 && unit.back() == 'i';
  if (binary) unit.remove_suffix(1);
  constexpr std::string_view kPrefixes = "KMGT";
  const char letter = unit.size() == 1 ? static_cast<char>(unit.front() & ~0x20) : '\0';
  const size_t power = unit.empty() ? 0 : kPrefixes.find(letter) + 1;
  const bool known = unit.empty() ? !binary : unit.size() == 1 && kPrefixes.find(letter) != std::string_view::npos;
  const double bytes = value * std::pow(binary ? 1024.0 : 1000.0, static_cast<double>(power));
  if (error != std::errc() || !known || !(bytes >= 1) || bytes > 9e18) {
    throw_error(ErrorKind::kUsage, option, " \"", text, "\": must be a size such as 2GB, 512MB or 1.5GiB");
  }
  return static_cast<uint64_t>(bytes);
}

}  // namespace dynslice
