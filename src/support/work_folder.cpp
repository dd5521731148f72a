#include "dynslice/support/work_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void throw_system_error(const fs::path& path, const std::string& what, int code) {
  const bool full = code == ENOSPC || code == EDQUOT;
  throw_error(full ? ErrorKind::kOutOfResources : ErrorKind::kMissingData, path.string(), ": ", what, " (",
              std::strerror(code), full ? "); free disk space or choose another folder" : ")");
}

}  // namespace

WorkFolder::~WorkFolder() {
  if (!is_open()) return;
  std::error_code ignored;
  if (!kept_) fs::remove_all(path_, ignored);
  ::close(descriptor_);
}

bool WorkFolder::lock() {
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (descriptor_ < 0) return false;
  const auto close_again = [&] { ::close(std::exchange(descriptor_, -1)); };
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    close_again();
    throw_error(ErrorKind::kUsage, path_.string(),
                ": another run is writing there; wait for it or choose another output folder");
  }
  // Its owner may have renamed or removed it between our opening and our lock.
  struct stat opened{}, named{};
  if (::fstat(descriptor_, &opened) != 0 || ::lstat(path_.c_str(), &named) != 0 || opened.st_ino != named.st_ino ||
      opened.st_dev != named.st_dev) {
    close_again();
    errno = ENOENT;
    return false;
  }
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
      ::close(std::exchange(descriptor_, -1));
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

void WorkFolder::release() { ::close(std::exchange(descriptor_, -1)); }

}  // namespace dynslice
