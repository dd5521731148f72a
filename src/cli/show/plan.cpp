// A plan for people to read.
#include "cli/show/plan.h"

#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "cli/show/sizes.h"
#include "cli/show/terminal.h"
#include "dynslice/jobs/planning.h"

namespace dynslice::cli {

void print_plan(std::ostream& out, const SlicePlan& plan, const std::optional<LayerScores>& scores,
                const SizeChange& change) {
  std::vector<std::vector<std::string>> rows;
  const bool modular = plan.is_modular(), by_heads = !plan.heads.empty();
  for (size_t i = 0; i < plan.dims.size(); ++i) {
    rows.push_back({std::to_string(i), scores ? format_fixed(scores->values[i], 4) : "-",
                    format_percent(plan.ratios[i]), std::to_string(plan.dims[i])});
    if (by_heads) rows.back().push_back(std::to_string(plan.heads[i].heads));
    rows.back().push_back(bar(plan.ratios[i], 30));
  }
  std::vector<std::string> columns = {"layer", scores ? scores->metric : "score", modular ? "removed" : "sliced",
                                      modular ? "MLP size" : "width"};
  if (by_heads) columns.emplace_back("heads");
  columns.emplace_back();
  print_table(out, columns, rows);

  const double mean_width = static_cast<double>(std::accumulate(plan.dims.begin(), plan.dims.end(), int64_t{0})) /
                            static_cast<double>(plan.dims.size());
  out << '\n';
  print_sizes(out, change,
              {modular ? "MLP size (mean)" : "width (mean)", std::to_string(plan.whole()), format_fixed(mean_width, 1),
               format_change(static_cast<double>(plan.whole()), mean_width)});
  out << "\nAsked: " << format_percent(plan.average_ratio) << " of the "
      << (by_heads  ? "layers' weights"
          : modular ? "MLPs' neurons"
                    : "width")
      << " on average (" << plan.allocator;
  if (plan.allocator == name_of(Allocator::kLr)) out << ", base " << format_percent(plan.base);
  out << ").\n";
  print_size_notice(out, change);
  if (change.after.parameters > change.before.parameters) {
    out << "The sliced model has more parameters than the source: the matrices on the residual paths outweigh what "
           "was cut.\n";
  }
}

}  // namespace dynslice::cli
