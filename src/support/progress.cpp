#include "dynslice/support/progress.h"

#include <atomic>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "request_interrupt is called from signal handlers");

class SilentSink final : public ProgressSink {
 public:
  void start(const std::string&, int64_t, const std::string&) override {}
  void advance(int64_t) override {}
  void finish() override {}
};

}  // namespace

ProgressSink& no_progress() {
  static SilentSink sink;
  return sink;
}

ProgressTask::ProgressTask(ProgressSink& sink, const std::string& task, int64_t total, const std::string& unit)
    : sink_(sink) {
  sink_.start(task, total, unit);
}

ProgressTask::~ProgressTask() { sink_.finish(); }

void ProgressTask::advance(int64_t amount) {
  check_interrupt();
  sink_.advance(amount);
  done_ += amount;
}

void ProgressTask::advance_to(int64_t done) {
  if (done > done_) advance(done - done_);
}

void ProgressTask::skip(int64_t amount) {
  sink_.skip(amount);
  done_ += amount;
}

void request_interrupt() noexcept { interrupted.store(true); }

bool interrupt_requested() noexcept { return interrupted.load(); }

void check_interrupt() {
  if (interrupt_requested()) throw Error(ErrorKind::kInterrupted, "interrupted");
}

}  // namespace dynslice
