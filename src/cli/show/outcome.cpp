#include "cli/show/outcome.h"

#include <vector>

#include "cli/show/terminal.h"
#include "dynslice/jobs/checkpoint_output.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/support/machine.h"
#include "dynslice/tensor/dtype.h"

namespace dynslice::cli {
namespace {

void print(std::ostream& out, const DryRun& dry_run) {
  const auto& [job, plan, rates, seconds, output_room, threads] = dry_run;
  std::vector<std::vector<std::string>> rows;
  for (const MemoryPart& part : plan.estimate.parts) {
    std::string name = part.name;
    for (char& c : name) c = c == '_' ? ' ' : c;
    rows.push_back({"  " + name, format_bytes(part.bytes)});
  }
  if (plan.estimate.stream_bytes > 0) rows.push_back({"  streams", format_bytes(plan.activation_bytes)});
  rows.push_back({"memory, at the most", format_bytes(plan.memory_bytes())});
  rows.push_back({"  of", format_bytes(plan.memory_limit)});
  if (plan.estimate.output_bytes > 0) rows.push_back({"disk, output", format_bytes(plan.estimate.output_bytes)});
  if (plan.scratch_bytes > 0) rows.push_back({"disk, scratch file", format_bytes(plan.scratch_bytes)});
  rows.push_back({"time, about", format_duration(seconds)});
  print_table(out, {job + " would need", ""}, rows);
  if (plan.estimate.work.flops() == 0) {
    out << "\nThe time is that of reading and writing at " << format_fixed(rates.bytes_read / 1e9, 0)
        << " GB/s. Nothing was done.\n";
    return;
  }
  out << "\nThe time is counted products at the rates of this machine just now ("
      << format_fixed(rates.forward_flops / 1e9, 0) << " GFLOP/s in " << dtype_name(plan.compute.dtype) << ", "
      << threads << " threads). Nothing was done.\n";
}

}  // namespace

void show(std::ostream& out, const DryRun& dry_run, bool json) {
  if (json) {
    out << to_text(to_json(dry_run));
  } else {
    print(out, dry_run);
  }
}

void show(std::ostream& out, const EarlierResult& earlier, bool json) {
  if (!json) return;  // the log has said it
  out << to_text(written_json(earlier.record, 0, {.rss = peak_rss_bytes(), .device = {}}, earlier.output));
}

}  // namespace dynslice::cli
