// The journal of a long command: what it has worked out so far, kept on disk at layer boundaries, so that a run that
// was killed goes on from there instead of from the beginning.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dynslice/support/fault_point.h"
#include "dynslice/support/file.h"
#include "dynslice/support/json.h"
#include "dynslice/support/work_folder.h"
#include "dynslice/walk/walk_state.h"

namespace dynslice {

// How often a walk is saved.
enum class JournalPace {
  kAuto,   // as often as costs at most about 3 % of the time
  kEvery,  // at every layer boundary: for tests
  kOff,    // never
};

struct JournalOptions {
  bool resume = false;      // go on from what is in the folder
  bool start_over = false;  // drop what is in the folder
  JournalPace pace = JournalPace::kAuto;
  FaultPoint fault{};  // among the saves of this run, the results of phases included
};

// Guarantees:
// 1. What is on disk is the old state or the new one, whenever the process is killed or the power fails: data are
//    written to a new file and synced, then one small state file is renamed over the old one.
// 2. Tensors go to disk and come back chunk by chunk; no copy of a stream is ever in memory.
// 3. Nothing that is read is trusted: sizes, shapes and checksums are compared before use.
// 4. Nothing is made on disk before there is something worth keeping; a journal that cannot be written (disk full)
//    warns once and never fails the command.
// A command is a sequence of phases, each a walk over the layers ("scoring", "slicing") with a result that is small.
class Journal {
 public:
  // `folder` is where the journal lies, beside other files perhaps. `fingerprint` says, key by key, what decides the
  // result of the job; `job` is what a run that goes on wants to know of the run that began (its command line).
  // Throws kUsage when the folder holds the journal of a run that ended early and the options name neither what to do
  // with it, or when it is to be resumed and has another fingerprint (naming the first key that differs); kBadInput
  // when it is to be resumed and is damaged.
  Journal(std::shared_ptr<WorkFolder> folder, const OrderedJson& fingerprint, const OrderedJson& job,
          const JournalOptions& options);
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  const std::filesystem::path& folder() const { return folder_->path(); }
  // Whether this run goes on from what an earlier one kept.
  bool is_resumed() const { return resumed_; }
  // Whether something is on disk to go on from.
  bool has_state() const { return sequence_ > 0; }
  // Where a run that goes on would begin: "layer 17 of 30 (slicing)".
  const std::string& position() const { return position_; }
  // Of the run that began the job.
  const OrderedJson& job() const { return job_; }
  // Seconds that the runs before this one spent on what was kept of them.
  double earlier_seconds() const { return earlier_seconds_; }

  // The result of a phase that is finished.
  std::optional<OrderedJson> result(const std::string& phase) const;
  // Keeps the result of a phase; its walk is then no longer needed.
  void finish(const std::string& phase, OrderedJson result);

  // Restores what was kept of this phase's walk, when something was, and returns the layer to go on with. Throws
  // kBadInput when it is damaged.
  std::optional<int64_t> restore(const std::string& phase, const WalkState& state, const at::Device& device) const;
  // Keeps the state of this phase's walk, which goes on with layer `next` of `layers`; when it is time to.
  void save(const std::string& phase, int64_t next, int64_t layers, const WalkState& state);

  // Has `state` called at every save, to bring a file that grows beside the walk to the disk and say what is in it.
  void attach(std::function<OrderedJson()> state) { attachment_ = std::move(state); }
  // What the attached one said when what is resumed was saved; null without any.
  const OrderedJson& attached() const { return attached_; }

  // Before the command ends early: saves results that are not on disk yet and leaves the folder for a run that goes
  // on. False when there is nothing to go on from.
  bool keep();
  // Removes the journal's files; the folder is left.
  void remove_files();
  static bool is_in(const std::filesystem::path& folder);

 private:
  using Clock = std::chrono::steady_clock;

  // A tensor, or one chunk of a stream, in the data file.
  struct Entry {
    std::string name;
    int64_t chunk = -1;  // of a stream; -1 for a tensor
    at::ScalarType dtype = at::kFloat;
    std::vector<int64_t> shape, strides;
    uint64_t offset = 0, bytes = 0;
    std::string checksum;
  };
  // The kept state of the walk in progress.
  struct Walk {
    std::string phase;
    int64_t next = 0, layers = 0;
    OrderedJson values;
    std::vector<std::pair<std::string, int64_t>> streams;  // with their numbers of chunks
    std::vector<Entry> entries;
    uint64_t bytes = 0;
    std::string file;
  };

  std::filesystem::path state_path() const;
  bool load();
  void check_fingerprint() const;
  void read_state(const Json& state, const OrderedJson& ordered);
  void read_walk(const Json& json, const OrderedJson& ordered);
  void restore_values(const WalkState& state) const;
  at::Tensor read_entry(const File& file, const Entry& entry) const;
  bool is_due(uint64_t bytes) const;
  void write(const std::string& phase, std::optional<Walk> walk, const WalkState* state);
  void write_data(Walk& walk, const WalkState& state) const;
  void write_state(const std::optional<Walk>& walk) const;
  void remove_data_files(const std::string& except) const;
  double seconds_so_far() const;
  [[noreturn]] void fail(const std::string& what) const;

  std::shared_ptr<WorkFolder> folder_;
  OrderedJson fingerprint_, kept_fingerprint_, job_;
  JournalOptions options_;
  bool resumed_ = false;
  bool broken_ = false;  // writing failed: no more of it
  int64_t sequence_ = 0;
  std::string position_;
  OrderedJson results_ = OrderedJson::object();
  bool results_unsaved_ = false;
  std::optional<Walk> walk_;
  OrderedJson attached_;
  std::function<OrderedJson()> attachment_;
  double earlier_seconds_ = 0;
  Clock::time_point started_ = Clock::now(), saved_ = started_;
  // What a save costs, a guess until one was measured.
  double seconds_per_save_ = 0.02, seconds_per_byte_ = 1 / 300e6;
};

// One phase of a journal, as library functions take it. A default-constructed one keeps nothing.
class JournalPhase {
 public:
  JournalPhase() = default;
  JournalPhase(Journal& journal, std::string name) : journal_(&journal), name_(std::move(name)) {}

  const std::string& name() const { return name_; }
  std::optional<OrderedJson> result() const { return journal_ ? journal_->result(name_) : std::nullopt; }
  void finish(OrderedJson result) const {
    if (journal_) journal_->finish(name_, std::move(result));
  }
  std::optional<int64_t> restore(const WalkState& state, const at::Device& device) const {
    return journal_ ? journal_->restore(name_, state, device) : std::nullopt;
  }
  void save(int64_t next, int64_t layers, const WalkState& state) const {
    if (journal_) journal_->save(name_, next, layers, state);
  }
  double earlier_seconds() const { return journal_ ? journal_->earlier_seconds() : 0; }

 private:
  Journal* journal_ = nullptr;
  std::string name_;
};

}  // namespace dynslice
