#include "cli/show/sizes.h"

#include <cmath>

#include "cli/show/terminal.h"

namespace dynslice::cli {

void print_sizes(std::ostream& out, const SizeChange& change, const std::vector<std::string>& first) {
  const auto row = [](const std::string& name, auto before, auto after, const auto& format) {
    return std::vector<std::string>{name, format(before), format(after),
                                    format_change(static_cast<double>(before), static_cast<double>(after))};
  };
  print_table(out, {"", "before", "after", "change"},
              {first, row("parameters", change.before.parameters, change.after.parameters, format_count),
               row("bytes on disk", change.bytes_before, change.bytes_after, format_bytes),
               row("multiply-adds a token", change.before.multiply_adds_per_token, change.after.multiply_adds_per_token,
                   format_count)});
}

void print_size_notice(std::ostream& out, const SizeChange& change) {
  if (change.bytes_before >= change.bytes_before_at_output_dtype) return;
  out << "The source is quantized: at the output's precision it has "
      << format_bytes(change.bytes_before_at_output_dtype) << ".\n";
}

}  // namespace dynslice::cli
