#include "cli/log/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/ansicolor_sink.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>

#include "dynslice/support/error.h"
#include "dynslice/support/log.h"

namespace dynslice::cli {
namespace {

using spdlog::level::level_enum;

// A message as it is shown. Coloured: the word before a warning or an error, and all of a debug message.
class ShownFormat final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& text) override {
    append(text, prefix(message.level));
    message.color_range_end = text.size();
    append(text, {message.payload.data(), message.payload.size()});
    if (message.level == level_enum::debug) message.color_range_end = text.size();
    text.push_back('\n');
  }
  std::unique_ptr<spdlog::formatter> clone() const override { return std::make_unique<ShownFormat>(); }

 private:
  static std::string_view prefix(level_enum level) {
    if (level == level_enum::err) return "dynslice: ";
    return level == level_enum::warn ? "warning: " : "";
  }
  static void append(spdlog::memory_buf_t& text, std::string_view words) {
    text.append(words.data(), words.data() + words.size());
  }
};

bool wants_colors() {
  const char* terminal = std::getenv("TERM");
  const char* no_color = std::getenv("NO_COLOR");  // https://no-color.org
  const bool refused = no_color != nullptr && *no_color != '\0';
  return ::isatty(STDERR_FILENO) != 0 && !refused && terminal != nullptr && std::string_view(terminal) != "dumb";
}

// Standard error. Guarantees: a message and the status line never share a line.
class Screen final : public spdlog::sinks::ansicolor_stderr_sink_st {
 public:
  Screen() { set_formatter(std::make_unique<ShownFormat>()); }

  void set_up(bool quiet, bool verbose) {
    quiet_ = quiet;
    verbose_ = verbose;
    set_color_mode(wants_colors() ? spdlog::color_mode::always : spdlog::color_mode::never);
  }

  void log(const spdlog::details::log_msg& message) override {
    if (!is_shown(message.level)) return;
    const std::lock_guard lock(drawing_);
    if (!status_.empty()) write(kClearLine);
    ansicolor_sink::log(message);
    write(status_);
  }

  void draw(const std::string& status) {
    const std::lock_guard lock(drawing_);
    status_ = status;
    write(kClearLine + status);
  }

  void finish(const std::string& status) {
    const std::lock_guard lock(drawing_);
    status_.clear();
    write(kClearLine + status + '\n');
  }

 private:
  static inline const std::string kClearLine = "\r\033[K";

  bool is_shown(level_enum level) const {
    if (level == level_enum::err) return true;
    return level == level_enum::debug ? verbose_ : !quiet_;
  }
  static void write(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stderr); }

  std::mutex drawing_;
  std::string status_;  // empty when none is drawn
  bool quiet_ = false;
  bool verbose_ = false;
};

struct ProgramLog {
  std::shared_ptr<Screen> screen = std::make_shared<Screen>();
  std::shared_ptr<spdlog::logger> logger = std::make_shared<spdlog::logger>("", screen);
};

ProgramLog& program_log() {
  static ProgramLog log;
  return log;
}

std::shared_ptr<spdlog::sinks::sink> begin_file(const LogOptions& options) {
  try {
    auto file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.file);
    file->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z [%l] %v");
    file->log(spdlog::details::log_msg("", level_enum::info, options.heading));
    file->flush();
    return file;
  } catch (const spdlog::spdlog_ex& error) {
    const std::string words = error.what();  // such as "Failed opening file PATH for writing: REASON"
    const size_t colon = words.rfind(": ");
    throw_error(ErrorKind::kOutOfResources, options.file, ": the log file cannot be written (",
                colon == std::string::npos ? words : words.substr(colon + 2), ")");
  }
}

// Work goes on without a log file that can no longer be written, as on a full disk.
void add_file(spdlog::logger& logger, const LogOptions& options) {
  logger.sinks().push_back(begin_file(options));
  logger.set_error_handler([&logger, path = options.file](const std::string&) {
    const auto& failed = logger.sinks().back();
    if (failed->level() == level_enum::off) return;
    failed->set_level(level_enum::off);
    logger.log(level_enum::warn, path + ": the log file can no longer be written; it ends here");
  });
}

level_enum spdlog_level(LogLevel level) {
  if (level == LogLevel::kDebug) return level_enum::debug;
  return level == LogLevel::kInfo ? level_enum::info : level_enum::warn;
}

}  // namespace

void install_log(const LogOptions& options) {
  ProgramLog& log = program_log();
  log.screen->set_up(options.quiet, options.verbose);
  auto logger = std::make_shared<spdlog::logger>("", log.screen);
  logger->set_level(level_enum::debug);
  logger->flush_on(level_enum::debug);
  if (!options.file.empty()) add_file(*logger, options);
  log.logger = std::move(logger);
  set_log_handler(
      [](LogLevel level, const std::string& message) { program_log().logger->log(spdlog_level(level), message); });
}

void report_error(const std::string& message) { program_log().logger->log(level_enum::err, message); }

MutedLog::MutedLog() { program_log().logger->set_level(level_enum::err); }
MutedLog::~MutedLog() { program_log().logger->set_level(level_enum::debug); }

void draw_status(const std::string& line) { program_log().screen->draw(line); }
void finish_status(const std::string& line) { program_log().screen->finish(line); }

}  // namespace dynslice::cli
