// One overload of `run` a verb; each returns when its output is written and throws Error otherwise.
#pragma once

#include "cli/options/options.h"
#include "cli/show/terminal.h"

namespace dynslice::cli {

void run(const ScoreOptions& options, TerminalProgress& progress);
void run(const PlanOptions& options, TerminalProgress& progress);
void run(const SliceOptions& options, TerminalProgress& progress);
void run(const EvalOptions& options, TerminalProgress& progress);
void run(const CompareOptions& options, TerminalProgress& progress);
void run(const BenchOptions& options, TerminalProgress& progress);
void run(const GenerateOptions& options, TerminalProgress& progress);
void run(const InspectOptions& options, TerminalProgress& progress);
void run(const ExportOptions& options, TerminalProgress& progress);
void run(const DropOptions& options, TerminalProgress& progress);
void run(const MergeOptions& options, TerminalProgress& progress);
void run(const StreamlineOptions& options, TerminalProgress& progress);
void run(const HealOptions& options, TerminalProgress& progress);
void run(const QuantizeOptions& options, TerminalProgress& progress);
void run(const RunOptions& options, TerminalProgress& progress);

}  // namespace dynslice::cli
