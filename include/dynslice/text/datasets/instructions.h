// Questions and answers to train on, in the form that the Alpaca data set made common.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace dynslice {

struct Instruction {
  std::string prompt;  // Alpaca's text around the instruction and its input
  std::string answer;
};

// A JSON list of objects with "instruction", "input" (may be empty or missing) and "output"; or, of a .jsonl file, one
// such object a line. Throws kMissingData when there is no such file, kBadInput (which entry, which key) for another
// form.
[[nodiscard]] std::vector<Instruction> load_instructions(const std::filesystem::path& file);

}  // namespace dynslice
