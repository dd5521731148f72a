// Values of options as they are typed. Every parser throws kUsage, naming the option and what it would take.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cli/options/options.h"

namespace dynslice::cli {

// "25%" or "0.25" → 0.25; only what is in [0, 1).
double parse_ratio(const std::string& option, const std::string& text);
// "params=25%".
SizeTarget parse_target(const std::string& text);
// 0 or more.
int64_t parse_integer(const std::string& option, const std::string& text);
// "A:B", "A:" or ":B".
RangeOption parse_range(const std::string& option, const std::string& text);
// "8,4,2" → the levels, which must fall, each from 2 to 8.
std::vector<int> parse_bits(const std::string& option, const std::string& text);
// "50%" or "40%,20%".
std::vector<double> parse_ratios(const std::string& option, const std::string& text);
// "20-25,3" → the ranges 20 to 25 and 3 to 3.
std::vector<std::pair<int64_t, int64_t>> parse_indices(const std::string& option, const std::string& text);

}  // namespace dynslice::cli
