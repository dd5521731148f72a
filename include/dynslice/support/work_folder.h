// The folder that one run works in until what it makes is whole: OUT.partial beside OUT.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "dynslice/support/file.h"

namespace dynslice {

// Guarantees: while it is open, no other run opens it (a lock that ends with the process, however it ends); the
// destructor removes an open folder, unless it is kept or was renamed; a folder with sub-folders, which no run of
// dynslice makes, is never removed or cleared.
class WorkFolder {
 public:
  // Touches nothing yet.
  explicit WorkFolder(std::filesystem::path path) : path_(std::move(path)) {}
  ~WorkFolder();
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] bool is_open() const { return folder_.is_open(); }

  // Locks the folder when it is there already. Throws kUsage when another run works in it, or it is no folder of a run.
  bool open_existing();
  // Opens the folder, made when it is not there. Throws as open_existing does, kMissingData when it cannot be made.
  void open();
  // Removes all files but those that `keeps` names.
  void clear(const std::function<bool(const std::string& name)>& keeps = {});
  // Leaves the folder where it is when the process ends, for a run that goes on from it.
  void keep(bool kept = true) { kept_ = kept; }
  // Says that the folder is no longer ours: it was renamed.
  void release() { folder_.close(); }

 private:
  bool lock();

  std::filesystem::path path_;
  File folder_;
  bool kept_ = false;
};

// Whether the name is that of a file of a journal (journal.json, journal-*.bin), which a run keeps in its folder beside
// what it makes, for the run that goes on.
[[nodiscard]] bool is_journal_file(const std::string& name);

}  // namespace dynslice
