// One overload of `run` a verb; each returns when its output is written and throws Error otherwise.
#pragma once

#include "cli/options/options.h"
#include "cli/show/terminal.h"

namespace dynslice::cli {

void run(const ScoreRequest& options, TerminalProgress& progress);
void run(const PlanRequest& options, TerminalProgress& progress);
void run(const SliceRequest& options, TerminalProgress& progress);
void run(const EvalRequest& options, TerminalProgress& progress);
void run(const CompareRequest& options, TerminalProgress& progress);
void run(const BenchRequest& options, TerminalProgress& progress);
void run(const GenerateRequest& options, TerminalProgress& progress);
void run(const InspectRequest& options, TerminalProgress& progress);
void run(const ExportRequest& options, TerminalProgress& progress);
void run(const DropRequest& options, TerminalProgress& progress);
void run(const MergeRequest& options, TerminalProgress& progress);
void run(const StreamlineRequest& options, TerminalProgress& progress);
void run(const HealRequest& options, TerminalProgress& progress);
void run(const QuantizeRequest& options, TerminalProgress& progress);
void run(const RunOptions& options, TerminalProgress& progress);

}  // namespace dynslice::cli
