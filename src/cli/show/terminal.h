// What a person sees: progress bars on stderr, tables in what a verb prints.
#pragma once

#include <chrono>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "dynslice/support/format.h"
#include "dynslice/support/machine.h"  // peak_rss_bytes
#include "dynslice/support/progress.h"

namespace dynslice::cli {

// A bar with rate and time left when stderr is a terminal; plain lines, at most one every ten seconds, elsewhere.
class TerminalProgress final : public ProgressSink {
 public:
  explicit TerminalProgress(bool quiet);
  void start(const std::string& task, int64_t total, const std::string& unit) override;
  void advance(int64_t amount) override;
  void skip(int64_t amount) override;
  void note(const std::string& words) override { note_ = words; }
  void finish() override;

 private:
  using Clock = std::chrono::steady_clock;
  void draw(bool last);

  bool quiet_;
  bool terminal_;
  std::string task_;
  std::string unit_;
  std::string note_;
  int64_t total_ = 0;
  int64_t done_ = 0;
  int64_t skipped_ = 0;  // of those done: by an earlier run
  Clock::time_point started_;
  Clock::time_point drawn_;
};

// Whoever read standard output went away, as `head` does. The program ends without a word, with exit code 5.
struct OutputClosed {};

// Columns of text, the first left-aligned, the others right-aligned.
void print_table(std::ostream& out, const std::vector<std::string>& header,
                 const std::vector<std::vector<std::string>>& rows);

// A horizontal bar of `width` cells, `share` of them filled; share in [0, 1].
std::string bar(double share, int width);

}  // namespace dynslice::cli
