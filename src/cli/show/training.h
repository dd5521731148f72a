// What is told of a training.
#pragma once

#include <string>
#include <vector>

#include "dynslice/train/training.h"

namespace dynslice::cli {

// The table of a training: losses as they are, or of the next token as perplexities.
std::vector<std::vector<std::string>> training_rows(const TrainingResult& result, bool as_perplexity);
std::vector<std::string> training_header(bool as_perplexity);
// "Trained on 401,408 tokens in 49 updates; kept the parameters after update 45."
std::string training_summary(const TrainingResult& result);

}  // namespace dynslice::cli
