#include "dynslice/jobs/generate.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <string_view>
#include <vector>

#include "cli/show/outcome.h"
#include "cli/verbs/verbs.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/support/error.h"
#include "dynslice/support/log.h"
#include "dynslice/tensor/dtype.h"

namespace dynslice::cli {
namespace {

std::string read_standard_input() {
  std::string text;
  std::vector<char> buffer(1 << 16);
  ssize_t count = 0;
  do {
    // read() alone would go on waiting after a Ctrl-C.
    pollfd input{STDIN_FILENO, POLLIN, 0};
    while (::poll(&input, 1, /*milliseconds=*/200) <= 0) check_interrupt();
    count = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (count > 0) text.append(buffer.data(), static_cast<size_t>(count));
    if (text.size() > kMaxPromptBytes) {
      throw_error(ErrorKind::kUsage, "standard input: has more than the ", kMaxPromptBytes, " bytes of a prompt");
    }
  } while (count > 0 || (count < 0 && errno == EINTR));
  if (count < 0) throw_error(ErrorKind::kMissingData, "standard input: cannot be read");
  return text;
}

// Whoever reads standard output may go away at any time, as `head` does: nothing that needs a message.
void write_out(std::ostream& out, std::string_view text) {
  out << text << std::flush;
  if (out) return;
  if (errno == EPIPE) throw OutputClosed();
  throw_error(ErrorKind::kOutOfResources, "stdout: cannot be written; is the disk full?");
}

std::string describe_end(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEnd:
      return "ended by the model";
    case FinishReason::kStop:
      return "ended by --stop";
    case FinishReason::kLength:
      return "ended by --max-tokens";
    case FinishReason::kContext:
      return "ended by the model's last position";
  }
  return "";
}

// Behind the text, which is there already.
void finish_text(std::ostream& out, const GenerateResult& result) {
  write_out(out, "\n");
  log(LogLevel::kInfo,
      "Prompt of " + std::to_string(result.prompt_ids.size()) + " tokens at " + format_fixed(result.prefill_rate(), 1) +
          " tokens/s, " + std::to_string(result.written.ids.size()) + " written at " +
          format_fixed(result.decode_rate(), 1) + " tokens/s, " + describe_end(result.written.finish) + "; " +
          dtype_name(result.dtype) + " on " + result.device.str() + ", peak memory " + format_bytes(result.peak.rss));
}

}  // namespace

void run(const GenerateRequest& request, TerminalProgress& progress, std::ostream& out) {
  bool has_text = false;
  GenerateCallbacks callbacks;
  // A person who gave no prompt is told so instead of being waited for.
  if (!request.prompt_file.empty() || ::isatty(STDIN_FILENO) == 0) callbacks.read_prompt = read_standard_input;
  if (!request.common.json) {
    callbacks.on_text = [&](std::string_view text) {
      has_text = true;
      write_out(out, text);
    };
  }
  try {
    present(out, dynslice::run(request, progress, callbacks), request.common,
            [&](const GenerateResult& result) { finish_text(out, result); });
  } catch (const Error&) {
    if (has_text) out << '\n' << std::flush;  // the message of an interruption is on a line of its own
    throw;
  }
}

}  // namespace dynslice::cli
