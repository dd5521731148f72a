#include "dynslice/support/format.h"

#include <cmath>
#include <cstdio>

namespace dynslice {

std::string span_of(int64_t first, int64_t last) {
  return first == last ? std::to_string(first) : std::to_string(first) + "-" + std::to_string(last);
}

std::string format_fixed(double value, int digits) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "%.*f", digits, value);
  return buffer;
}

std::string format_percent(double ratio, int digits) { return format_fixed(100 * ratio, digits) + "%"; }

std::string format_change(double before, double after) {
  const double change = before != 0 ? after / before - 1 : 0;
  return (change >= 0 ? "+" : "") + format_percent(change);
}

// A number goes to the next unit where its digits would round up to it: "1.0 MB", not "1000.0 kB".

std::string format_count(int64_t value) {
  const auto v = static_cast<double>(value);
  if (value >= 999'950'000) return format_fixed(v / 1e9, 2) + " G";
  if (value >= 999'950) return format_fixed(v / 1e6, 1) + " M";
  if (value >= 10'000) return format_fixed(v / 1e3, 1) + " k";
  return std::to_string(value);
}

std::string format_bytes(uint64_t bytes) {
  const auto v = static_cast<double>(bytes);
  if (v >= 999.95e6) return format_fixed(v / 1e9, 2) + " GB";
  if (v >= 999.95e3) return format_fixed(v / 1e6, 1) + " MB";
  if (v >= 1e3) return format_fixed(v / 1e3, 1) + " kB";
  return std::to_string(bytes) + " B";
}

std::string format_duration(double seconds) {
  if (seconds < 59.95) return format_fixed(seconds, 1) + " s";
  const auto whole = static_cast<int64_t>(std::lround(seconds));
  if (whole < 3600) return std::to_string(whole / 60) + " min " + std::to_string(whole % 60) + " s";
  return std::to_string(whole / 3600) + " h " + std::to_string(whole % 3600 / 60) + " min";
}

}  // namespace dynslice
