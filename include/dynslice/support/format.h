// Numbers as people read them.
#pragma once

#include <cstdint>
#include <string>

namespace dynslice {

// "3-7", "3".
[[nodiscard]] std::string span_of(int64_t first, int64_t last);

[[nodiscard]] std::string format_fixed(double value, int digits);
[[nodiscard]] std::string format_percent(double ratio, int digits = 1);  // 0.25 → "25.0%"
[[nodiscard]] std::string format_change(double before, double after);    // "-8.3%"
[[nodiscard]] std::string format_count(int64_t value);                   // 134515008 → "134.5 M"
[[nodiscard]] std::string format_bytes(uint64_t bytes);                  // "269.0 MB"
[[nodiscard]] std::string format_duration(double seconds);               // "1 min 5 s"

}  // namespace dynslice
