// Fault points: a save at which a run raises a signal against itself. Tests of stopped runs stop them there, at the
// same point in every run, where a signal from outside would come at a random one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dynslice {

// How far a save has come.
enum class SaveMoment {
  kData,   // its data are on the disk, the file that names them is not
  kState,  // that file is on the disk too, under a temporary name
  kSaved,  // the save is complete
};

// For tests. Guarantees:
// 1. The signals are raised once, in the thread that saves, before anything else is done: nothing is on the disk that
//    belongs to a later moment.
// 2. Without a signal's handler the process has ended when `reached` would return; with one, `reached` returns and the
//    run goes on as after a signal from outside.
class FaultPoint {
 public:
  // None.
  FaultPoint() = default;
  // The save with this number, from 1 on, of the phase; of all saves when `phase` is empty.
  FaultPoint(std::string phase, int64_t number, SaveMoment moment, std::vector<int> signals);

  // A save of this phase begins.
  void begin(const std::string& phase);
  // The save that began last has come this far: raises the signals when this is the moment.
  void reached(SaveMoment moment) const;

 private:
  std::string phase_;
  int64_t saves_left_ = 0;  // until the one at which the signals are raised
  SaveMoment moment_ = SaveMoment::kSaved;
  std::vector<int> signals_;
  bool is_here_ = false;
};

}  // namespace dynslice
