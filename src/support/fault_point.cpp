#include "dynslice/support/fault_point.h"

#include <csignal>
#include <utility>

namespace dynslice {

FaultPoint::FaultPoint(std::string phase, int64_t number, SaveMoment moment, std::vector<int> signals)
    : phase_(std::move(phase)), saves_left_(number), moment_(moment), signals_(std::move(signals)) {}

void FaultPoint::begin(const std::string& phase) {
  const bool counts = phase_.empty() || phase == phase_;
  is_here_ = counts && saves_left_ > 0 && --saves_left_ == 0;
}

void FaultPoint::reached(SaveMoment moment) const {
  if (!is_here_ || moment != moment_) return;
  for (const int signal : signals_) std::raise(signal);
}

}  // namespace dynslice
