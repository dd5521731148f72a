// One overload of `run` a verb; each prints its result into `out`, returns when its output is written and throws Error
// otherwise.
#pragma once

#include <ostream>

#include "cli/options/options.h"
#include "cli/show/terminal.h"

namespace dynslice::cli {

void run(const ScoreRequest& options, TerminalProgress& progress, std::ostream& out);
void run(const PlanRequest& options, TerminalProgress& progress, std::ostream& out);
void run(const SliceRequest& options, TerminalProgress& progress, std::ostream& out);
void run(const EvalRequest& options, TerminalProgress& progress, std::ostream& out);
void run(const CompareRequest& options, TerminalProgress& progress, std::ostream& out);
void run(const BenchRequest& options, TerminalProgress& progress, std::ostream& out);
void run(const GenerateRequest& options, TerminalProgress& progress, std::ostream& out);
void run(const InspectRequest& options, TerminalProgress& progress, std::ostream& out);
void run(const ModelsRequest& options, TerminalProgress& progress, std::ostream& out);
void run(const ExportRequest& options, TerminalProgress& progress, std::ostream& out);
void run(const DropRequest& options, TerminalProgress& progress, std::ostream& out);
void run(const MergeRequest& options, TerminalProgress& progress, std::ostream& out);
void run(const StreamlineRequest& options, TerminalProgress& progress, std::ostream& out);
void run(const HealRequest& options, TerminalProgress& progress, std::ostream& out);
void run(const QuantizeRequest& options, TerminalProgress& progress, std::ostream& out);
void run(const RunOptions& options, TerminalProgress& progress, std::ostream& out);

}  // namespace dynslice::cli
