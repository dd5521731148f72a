#include "cli/run.h"

#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <malloc.h>

#include <algorithm>
#include <csignal>
#include <exception>
#include <filesystem>
#include <iostream>
#include <new>
#include <string>

#include "cli/log/log.h"
#include "cli/verbs/verbs.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/support/error.h"
#include "dynslice/support/system_error.h"

namespace dynslice::cli {
namespace {

constexpr const char* kMemoryAdvice =
    "; lower --samples, --seqlen or --threads, let streams live on the disk with --activation-memory, give "
    "--max-memory, "
    "or use a machine with more memory";
constexpr const char* kDeviceAdvice =
    "; end what else uses the device, give --max-memory (less than it has), lower --samples or --seqlen, or compute "
    "with --device cpu";

void on_interrupt(int) {
  // A second Ctrl-C ends the program at once.
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) std::signal(signal, SIG_DFL);
  request_interrupt();
}

// Keeps freed memory instead of returning it: the same buffers come and go for every chunk, and each new page would
// be cleared by the kernel again, which costs as much as the arithmetic on it. Not so the largest ones, which belong to
// wide models: the products that fill them take far longer than clearing them, and kept in the heap their sizes, which
// differ from layer to layer, would leave holes that serve nobody.
void keep_freed_memory() {
  ::mallopt(M_MMAP_THRESHOLD, 64 << 20);
  ::mallopt(M_TRIM_THRESHOLD, 1 << 30);
  ::mallopt(M_TOP_PAD, 64 << 20);
}

// A path or argument may hold a line break; a message is one line all the same.
int report(std::string message, int exit_code) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  report_error(message);
  return exit_code;
}

// LibTorch's messages carry a stack trace after the first line.
int report_torch(const c10::Error& error) {
  std::string message = error.what_without_backtrace();
  message = message.substr(0, message.find('\n'));
  const auto says = [&](const char* words) { return message.find(words) != std::string::npos; };
  // The allocator of devices has a type of its own for this; that of the host, and cuBLAS, have words alone.
  const bool is_device_full = dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr;
  const bool on_device = is_device_full || says("CUDA") || says("CUBLAS") || says("CUSOLVER");
  if (is_device_full || says("allocate memory") || says("ALLOC_FAILED")) {
    return report("out of memory (" + message + ")" + (on_device ? kDeviceAdvice : kMemoryAdvice),
                  static_cast<int>(ErrorKind::kOutOfResources));
  }
  return report("internal error, please report it with the command line: " + message, 1);
}

int run_and_report(const Command& command) {
  try {
    std::visit(
        [](const auto& options) {
          const CommonOptions& common = options.common;
          install_log({common.quiet, common.verbose, common.log_file, shell_line(common.command_line)});
          TerminalProgress progress(common.quiet);
          run(options, progress, std::cout);
        },
        command);
    std::cout.flush();
    if (!std::cout) return report("stdout: cannot be written; is the disk full or the pipe closed?", 5);
    return 0;
  } catch (const OutputClosed&) {
    return static_cast<int>(ErrorKind::kOutOfResources);
  } catch (const Error& error) {
    return report(error.what(), error.exit_code());
  } catch (const c10::Error& error) {
    return report_torch(error);
  } catch (const std::bad_alloc&) {
    return report(std::string("out of memory") + kMemoryAdvice, static_cast<int>(ErrorKind::kOutOfResources));
  } catch (const std::filesystem::filesystem_error& error) {
    return report(error.path1().string() + ": " + error.code().message(),
                  static_cast<int>(error_kind_of(error.code().value())));
  } catch (const std::exception& error) {
    return report(std::string("internal error, please report it with the command line: ") + error.what(), 1);
  }
}

}  // namespace
}  // namespace dynslice::cli

int dynslice_run_command(const dynslice::cli::Command& command) noexcept {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) std::signal(signal, dynslice::cli::on_interrupt);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // a write over the file size limit then fails and is reported
  dynslice::cli::keep_freed_memory();
  const c10::InferenceMode no_autograd;
  return dynslice::cli::run_and_report(command);
}
