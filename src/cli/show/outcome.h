// What is said of a job: its result, or why it did not run.
#pragma once

#include <ostream>

#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/requests.h"

namespace dynslice::cli {

void show(std::ostream& out, const DryRun& dry_run, bool json);
void show(std::ostream& out, const EarlierResult& earlier, bool json);

// The result as its JSON, with --json, or as `print(result)` says it.
template <typename Result, typename Print>
void present(std::ostream& out, const Outcome<Result>& outcome, const CommonOptions& common, const Print& print) {
  if (const auto* dry_run = std::get_if<DryRun>(&outcome)) {
    if (!common.rehearsal) show(out, *dry_run, common.json);
  } else if (const auto* earlier = std::get_if<EarlierResult>(&outcome)) {
    show(out, *earlier, common.json);
  } else if (common.json) {
    out << to_text(to_json(std::get<Result>(outcome)));
  } else {
    print(std::get<Result>(outcome));
  }
}

}  // namespace dynslice::cli
