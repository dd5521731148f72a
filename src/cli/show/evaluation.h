// Perplexity and divergence, in words and in a table.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "dynslice/jobs/evaluating.h"

namespace dynslice::cli {

// "perplexity 23.63 ± 0.21", and a line with the figures of words and bytes.
std::string describe(const Perplexity& perplexity, const ScoredText& text);

void print_divergence(std::ostream& out, const Divergence& divergence, const std::string& reference);

}  // namespace dynslice::cli
