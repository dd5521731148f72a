// The frame of the jobs that write a checkpoint's folder: what an earlier run left, the journal, and what it all took.
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <utility>

#include "dynslice/checkpoint/checkpoint_writer.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/journaling.h"
#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/prepare.h"

namespace dynslice {

struct FolderJob {
  const CommonOptions& common;
  const ComputeOptions& compute;
  const Checkpoint& checkpoint;
  const std::filesystem::path& out;
  std::chrono::steady_clock::time_point start;
};

// What an earlier run of this very job wrote, if it had finished; else the result of work(folder, journal), with its
// `seconds` and `peak` filled in. `fingerprint` makes what decides the job, and is asked where there is work to do.
template <typename Result, typename Fingerprint, typename Work>
Outcome<Result> write_folder(const FolderJob& job, const Fingerprint& fingerprint, const Work& work) {
  const auto folder = std::make_shared<WorkFolder>(CheckpointWriter::partial_folder(job.out));
  const OrderedJson run_description = describe_run(job.common, job.compute, job.checkpoint);
  if (auto earlier = earlier_result(job.common, job.out, *folder, run_description)) return std::move(*earlier);
  Journal journal(folder, fingerprint(), run_description, journal_options(job.common));
  Result result;
  with_journal(journal, job.common, [&] {
    result = work(folder, journal);
    result.seconds = journal.earlier_seconds() + seconds_since(job.start);
    result.peak = peak_memory(job.compute);
  });
  return result;
}

}  // namespace dynslice
