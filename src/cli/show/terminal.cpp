#include "cli/show/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>

#include "cli/log/log.h"

namespace dynslice::cli {
namespace {

using namespace std::chrono_literals;

int terminal_columns() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string format_rate(double rate, const std::string& unit) {
  if (unit == "bytes") return format_bytes(static_cast<uint64_t>(rate)) + "/s";
  return format_fixed(rate, rate < 100 ? 1 : 0) + " " + unit + "/s";
}

// Cells on a terminal: bytes that begin a character.
size_t display_width(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

}  // namespace

TerminalProgress::TerminalProgress(bool quiet) : quiet_(quiet), terminal_(::isatty(STDERR_FILENO) != 0) {}

void TerminalProgress::start(const std::string& task, int64_t total, const std::string& unit) {
  task_ = task;
  total_ = total;
  unit_ = unit;
  note_.clear();
  done_ = skipped_ = 0;
  started_ = drawn_ = Clock::now();
  if (!quiet_ && terminal_) draw(false);
}

void TerminalProgress::advance(int64_t amount) {
  done_ += amount;
  const auto now = Clock::now();
  const auto pause = terminal_ ? Clock::duration(100ms) : Clock::duration(10s);
  if (quiet_ || now - drawn_ < pause || done_ == total_) return;
  drawn_ = now;
  draw(false);
}

void TerminalProgress::skip(int64_t amount) {
  done_ += amount;
  skipped_ += amount;
  if (!quiet_ && terminal_) draw(false);
}

void TerminalProgress::finish() {
  const double seconds = std::chrono::duration<double>(Clock::now() - started_).count();
  if (quiet_ || (!terminal_ && seconds < 2)) return;
  draw(true);
}

void TerminalProgress::draw(bool last) {
  const double seconds = std::chrono::duration<double>(Clock::now() - started_).count();
  const double rate = seconds > 0 ? static_cast<double>(done_ - skipped_) / seconds : 0;
  const double share = total_ > 0 ? std::min(1.0, static_cast<double>(done_) / static_cast<double>(total_)) : 0;
  std::string figures;
  const auto add = [&](const std::string& figure) { figures += (figures.empty() ? "" : ", ") + figure; };
  if (total_ > 0) add(format_percent(share, 0));
  if (done_ > skipped_) add(format_rate(rate, unit_));
  if (last) {
    add(format_duration(seconds));
  } else if (done_ > skipped_ && total_ > done_) {
    add(format_duration(static_cast<double>(total_ - done_) / rate) + " left");
  }
  if (!note_.empty()) add(note_);
  if (!terminal_) {
    std::cerr << task_ + ": " + figures + '\n';
    return;
  }
  const int room = std::clamp(terminal_columns() - static_cast<int>(task_.size() + figures.size()) - 4, 0, 40);
  const std::string line = task_ + ' ' + (room >= 8 && total_ > 0 ? bar(share, room) + " " : "") + figures;
  last ? finish_status(line) : draw_status(line);
}

void print_table(std::ostream& out, const std::vector<std::string>& header,
                 const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const std::string& cell : header) widths.push_back(display_width(cell));
  for (const auto& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], display_width(row[c]));
  }
  const auto print_row = [&](const std::vector<std::string>& row) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) {
      const std::string padding(widths[c] - display_width(row[c]), ' ');
      const bool left = c == 0 || row[c].starts_with("█") || row[c].starts_with("▏") || row[c].starts_with(" ");
      line += (c > 0 ? "  " : "") + (left ? row[c] + padding : padding + row[c]);
    }
    while (line.ends_with(' ')) line.pop_back();
    out << line << '\n';
  };
  print_row(header);
  for (const auto& row : rows) print_row(row);
}

std::string bar(double share, int width) {
  static constexpr const char* kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const int eighths = static_cast<int>(std::lround(std::clamp(share, 0.0, 1.0) * width * 8));
  std::string text;
  for (int i = 0; i < eighths / 8; ++i) text += "█";
  text += kEighths[eighths % 8];
  const int used = eighths / 8 + (eighths % 8 > 0 ? 1 : 0);
  return text + std::string(static_cast<size_t>(width - used), ' ');
}

}  // namespace dynslice::cli
