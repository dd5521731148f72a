// Which options of planning go together.
#include "dynslice/model/architecture.h"
#include "dynslice/modular/modular.h"
#include "dynslice/slice/global.h"
#include "dynslice/slice/slice.h"
#include "dynslice/support/error.h"
#include "jobs/plan_parts.h"

namespace dynslice {
namespace {

void refuse(const std::string& option, const std::string& place) {
  throw_error(ErrorKind::kUsage, option, " belongs to --method ", place);
}

void check_modular_options(const PlanningRequest& options) {
  if (options.slice_head) refuse("--slice-head", "slice");
  if (options.is_paper()) refuse("--preset paper", "slice");
  if (options.basis != BasisScope::kBlock) refuse("--basis", "slice");
  if (options.directions != DirectionChoice::kEnergy) refuse("--directions", "slice --basis global");
  if (options.modular.refit == Refit::kNone) refuse("--refit none", "slice");
  if (!options.allocation().is_of_modular) refuse("--allocate " + name_of(options.allocator()), "slice");
}

void check_global(const PlanningRequest& options) {
  if (options.allocator() != Allocator::kConstant) {
    throw_error(ErrorKind::kUsage, "--allocate ", name_of(options.allocator()),
                ": with --basis global all layers have one width, which is --allocate constant");
  }
  if (options.is_paper()) refuse("--preset paper", "slice --basis block");
  const bool by_energy = options.directions == DirectionChoice::kEnergy;
  if (by_energy && options.modular.gradient_samples)
    refuse("--gradient-samples", "slice --basis global with --directions places or loss");
  if (!by_energy && options.modular.gradient_samples == 0)
    throw_error(ErrorKind::kUsage, "--directions ", name_of(options.directions),
                " needs gradients: --gradient-samples 1 or more");
}

// Those that only some allocators read.
void check_allocator_options(const PlanningRequest& options) {
  const bool is_search = options.allocator() == Allocator::kSearch;
  const auto refuse_unless = [&](bool is_read, const char* option, const std::string& readers) {
    if (!is_read && options.common.is_given(option)) {
      throw_error(ErrorKind::kUsage, option, " belongs to ", readers, ", not to --allocate ",
                  name_of(options.allocator()));
    }
  };
  const auto refuse_unless_read = [&](const char* option, bool AllocatorRow::* reads) {
    const auto is_in = [&](const AllocatorRow& row) { return row.*reads; };
    refuse_unless(options.allocation().*reads, option, "--allocate " + names_where<Allocator>(is_in));
  };
  refuse_unless(options.allocator() == Allocator::kLr, "--base", "--allocate lr");
  refuse_unless_read("--epsilon", &AllocatorRow::reads_epsilon);
  refuse_unless_read("--scores", &AllocatorRow::reads_scores);
  refuse_unless_read("--attention", &AllocatorRow::reads_losses);
  refuse_unless(is_search, "--trials", "--allocate search");
  refuse_unless(is_search || options.base_auto, "--sweep-samples", "--allocate search and --base auto");
}

void check_several_bases(const PlanningRequest& options) {
  if (options.is_paper() && options.modular.of_any_refit())
    throw_error(ErrorKind::kUsage, "--preset paper refits nothing: leave --refit, --error-share and --ridge out");
  if (options.modular.gradient_samples && !options.allocation().reads_losses)
    refuse("--gradient-samples", "modular, to --allocate loss, blend or search, or to --method slice --basis global");
  if (options.directions != DirectionChoice::kEnergy) refuse("--directions", "slice --basis global");
}

void check_method(const PlanningRequest& options, const Checkpoint& checkpoint) {
  if (options.is_modular()) {
    check_modular_options(options);
    check_modular(checkpoint);
    const bool asks = options.modular.attention == AttentionChoice::kHeads;
    if (asks && !architecture_of(checkpoint.config()).can_remove_heads()) {
      const bool has_delta = architecture_of(checkpoint.config()).has_delta_layers();
      throw_error(ErrorKind::kUsage, checkpoint.path().string(), ": ", checkpoint.config().model_type,
                  has_delta ? " has gated delta nets in the place of attention, whose heads are kept"
                            : " norms all heads of queries together, so that none can be removed",
                  "; give --attention keep, which removes neurons alone");
    }
    return;
  }
  if (!options.allocation().is_of_slice) refuse("--allocate " + name_of(options.allocator()), "modular");
  if (options.modular.any_but_refit()) refuse("one of --attention, --neurons, --weigh-tokens", "modular");
  if (options.modular.refit == Refit::kSelf) refuse("--refit self", "modular");
  options.is_global() ? check_global(options) : check_several_bases(options);
  if (!rotation_refit(options).is_any() && (options.modular.error_share || options.modular.ridge))
    throw_error(ErrorKind::kUsage, "--error-share and --ridge are of a refit: --refit dense or all");
  check_sliceable(checkpoint);
  if (options.is_global()) check_narrower(checkpoint);
}

}  // namespace

void check_planning(const PlanningRequest& options, const Checkpoint& checkpoint) {
  if (!options.average && !options.target) {
    throw_error(ErrorKind::kUsage, "say how much to slice: --avg 25%, or --target params=25%");
  }
  check_method(options, checkpoint);
  check_allocator_options(options);
  // A target's average is solved for later: any will do to check the rest.
  const double average = options.average.value_or(0);
  const bool has_base = options.allocator() == Allocator::kLr && options.average;
  check_options(allocate_options(options, average, has_base ? base_of(options, average) : average));
}

void adopt_plan(PlanningRequest& options, const SlicePlan& plan, const Checkpoint& checkpoint) {
  options.method = plan.method;
  options.basis = plan.is_modular() ? BasisScope::kBlock : plan.basis;
  options.given_allocator = Allocator::kConstant;
  check_method(options, checkpoint);
}

}  // namespace dynslice
