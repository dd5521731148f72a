// Text to calibrate and to evaluate on: named data sets and files, cut into windows of tokens.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/support/progress.h"
#include "dynslice/support/token_windows.h"
#include "dynslice/text/tokenizer/tokenizer.h"

namespace dynslice {

enum class TextUse { kCalibration, kEvaluation };

struct TextSource {
  std::string name;            // "wikitext2", "ptb", "c4", or the file's name
  std::string split;           // "test", "validation", "train"; empty for a file
  std::filesystem::path path;  // the file that was read
  std::string sha256;          // of that file
  std::string text;            // what is tokenized
  std::string notice;          // one line for the user when something was chosen for them, else empty
  int64_t usual_windows = 0;   // that are evaluated unless it is said how many, as papers have it; 0: all
};

// SPEC = name[:split] or a path to a .txt, .raw, .jsonl file (or any other text file).
// wikitext2: rows joined with "\n\n"; a row is a line of the raw file with its newline, a blank line is an empty row.
// ptb: lines, without the spaces around them, joined with " ". c4: the first 1100 documents of the first validation
// file (for training the first 4400 of the first training file), joined with " ".
// The name alone is the test split for evaluation (of c4, which has none, validation); for calibration the training
// split, else the validation split where training is not at hand (said in `notice`).
// A .jsonl file gives the "text" of each line, joined with "\n\n"; any other file is its text as it stands.
// Data sets are looked for in `data_dir`, DYNSLICE_DATA_DIR, the cache, then the hub.
// Throws kMissingData with a line that says which file to put where; kBadInput (line number) for broken jsonl;
// kUsage for an unknown name or split (known ones are listed).
[[nodiscard]] TextSource load_text(const std::string& spec, TextUse use, const std::filesystem::path& data_dir,
                                   ProgressSink& progress);

struct TokenRange {
  int64_t begin = 0;
  int64_t end = 0;
};

struct WindowOptions {
  int64_t seqlen = 2048;            // tokens a window
  int64_t samples = 0;              // windows; 0 means all that fit
  std::optional<TokenRange> range;  // of the token stream; the whole stream without
  std::optional<uint64_t> shuffle;  // seed: windows in random order instead of the first ones
};

// Cuts the stream into windows; an incomplete rest is dropped. Throws kUsage when the range lies outside of
// the stream, not one window fits, or fewer than `samples` windows are there (both numbers are said).
[[nodiscard]] TokenWindows cut_windows(const std::vector<int32_t>& stream, const WindowOptions& options);

}  // namespace dynslice
