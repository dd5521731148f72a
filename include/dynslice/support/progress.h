// Progress of long work and the wish to stop it. The library reports here and never prints; the command
// line program draws bars, a script's sink may do nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace dynslice {

// Receives the progress of one task at a time. All calls come from the thread that runs the task.
class ProgressSink {
 public:
  virtual ~ProgressSink() = default;
  // `total` counts `unit`s ("tokens", "bytes"); 0 when it is not known.
  virtual void start(const std::string& task, int64_t total, const std::string& unit) = 0;
  virtual void advance(int64_t amount) = 0;
  // Counts what an earlier run did; it tells nothing of the speed.
  virtual void skip(int64_t amount) { advance(amount); }
  // A few words on how it goes, shown beside the figures from now on: "loss 3.21".
  virtual void note(const std::string&) {}
  virtual void finish() = 0;
};

// Swallows everything.
[[nodiscard]] ProgressSink& no_progress();

// One task on a sink: start in the constructor, finish in the destructor. `advance` throws
// Error(kInterrupted) once interruption was requested, which makes every long task stop at its next step.
class ProgressTask {
 public:
  ProgressTask(ProgressSink& sink, const std::string& task, int64_t total, const std::string& unit);
  ~ProgressTask();
  ProgressTask(const ProgressTask&) = delete;
  ProgressTask& operator=(const ProgressTask&) = delete;
  void advance(int64_t amount);
  // Advances by what is missing up to `done`, if anything is: the end of a step whose parts were only guessed.
  void advance_to(int64_t done);
  void skip(int64_t amount);
  void note(const std::string& words) { sink_.note(words); }

 private:
  ProgressSink& sink_;
  int64_t done_ = 0;
};

// Asks running tasks to stop; safe to call from a signal handler.
void request_interrupt() noexcept;
[[nodiscard]] bool interrupt_requested() noexcept;
// Throws Error(kInterrupted) when interruption was requested.
void check_interrupt();

}  // namespace dynslice
