// How much of what a model knew its compressed form still knows, question by question.
#pragma once

#include <string>
#include <vector>

#include "dynslice/evaluate/outcomes.h"

namespace dynslice {

// LLM-Streamline's stability (arXiv 2403.19135): Σ w_i over the questions that both models answer rightly or both
// wrongly. The weights w are a softmax over the questions of the standard deviation (of all choices, not of a sample)
// of what the original model's choices are measured by.
struct Stability {
  double value = 0;    // by the choices' perplexities, exp(-log-likelihood / tokens)
  double by_loss = 0;  // by their logarithms, which is what the authors' figures were made with
  // 1 / Σ w²: over how many questions the weights are spread, of either.
  double questions_behind_value = 0;
  double questions_behind_loss = 0;
  double agreement = 0;  // the same with equal weights
  // Questions with another prediction than the original's, by their numbers from 0 on.
  std::vector<int64_t> lost;     // right before, wrong now
  std::vector<int64_t> gained;   // wrong before, right now
  std::vector<int64_t> changed;  // wrong both times, differently
};

// Throws kUsage when the two outcomes are not of the same questions.
[[nodiscard]] Stability compare_outcomes(const TaskOutcome& original, const TaskOutcome& compressed);

}  // namespace dynslice
