#include "dynslice/support/work_folder.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "dynslice/support/error.h"
#include "dynslice/support/system_error.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

}  // namespace

WorkFolder::~WorkFolder() {
  if (!is_open()) return;
  std::error_code ignored;
  if (!kept_) fs::remove_all(path_, ignored);  // while it is locked
}

bool WorkFolder::lock() {
  File folder(path_, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  if (!folder.is_open()) return false;
  if (!folder.lock() && errno == EWOULDBLOCK) {
    throw_error(ErrorKind::kUsage, path_.string(),
                ": another run is writing there; wait for it or choose another output folder");
  }
  // Its owner may have renamed or removed it between our opening and our lock.
  if (!folder.is_still_at(path_)) {
    errno = ENOENT;
    return false;
  }
  folder_ = std::move(folder);
  return true;
}

bool WorkFolder::open_existing() {
  if (is_open()) return true;
  if (!lock()) {
    const int code = errno;
    struct stat status{};
    if (code == ENOENT || ::lstat(path_.c_str(), &status) != 0) return false;
    if (code == ENOTDIR || code == ELOOP) {
      throw_error(ErrorKind::kUsage, path_.string(),
                  ": is in the way and no remainder of an earlier run; move it away");
    }
    throw_system_error(path_, "cannot be opened as a folder", code);
  }
  std::error_code error;
  for (fs::directory_iterator entry(path_, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->is_directory(error)) {
      folder_.close();
      throw_error(ErrorKind::kUsage, path_.string(),
                  ": is in the way and no remainder of an earlier run; move it away");
    }
  }
  return true;
}

void WorkFolder::open() {
  while (!open_existing()) {
    std::error_code error;
    if (path_.has_parent_path()) fs::create_directories(path_.parent_path(), error);
    if (!error && ::mkdir(path_.c_str(), 0755) != 0 && errno != EEXIST) error = {errno, std::generic_category()};
    if (error) throw_system_error(path_, "cannot be created", error.value());
  }
}

void WorkFolder::clear(const std::function<bool(const std::string& name)>& keeps) {
  std::error_code error;
  for (fs::directory_iterator entry(path_, error), end; !error && entry != end; entry.increment(error)) {
    if (keeps && keeps(entry->path().filename().string())) continue;
    fs::remove(entry->path(), error);
    if (error) break;
  }
  if (error) throw_system_error(path_, "cannot be cleared", error.value());
}

bool is_journal_file(const std::string& name) {
  return name.starts_with("journal.json") || (name.starts_with("journal-") && name.ends_with(".bin"));
}

}  // namespace dynslice
