#include "dynslice/hub/hub_cache.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>
#include <thread>

#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/log.h"
#include "dynslice/support/progress.h"
#include "dynslice/support/system_error.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxRefBytes = 256;

std::string repo_folder_name(HubRepoKind kind, std::string repo) {
  const auto slash = repo.find('/');
  if (slash != std::string::npos) repo.replace(slash, 1, "--");
  return (kind == HubRepoKind::kModel ? "models--" : "datasets--") + repo;
}

// Replaces what is at `link` in one step, so that no reader finds it missing.
void put_symlink(const fs::path& target, const fs::path& link, const fs::path& blob) {
  fs::path temporary = link;
  temporary += ".partial-" + std::to_string(::getpid());
  std::error_code error;
  fs::remove(temporary, error);
  fs::create_symlink(target, temporary, error);
  // A file system without symbolic links gets a copy, as huggingface_hub does there.
  if (error) fs::copy_file(blob, temporary, fs::copy_options::overwrite_existing, error);
  if (!error) fs::rename(temporary, link, error);
  if (!error) return;
  throw_error(error_kind_of(error.value()), link.string(), ": cannot be made (", error.message(),
              "); set HF_HOME to a folder that can be written");
}

}  // namespace

bool is_safe_relative_path(std::string_view name) {
  if (name.empty() || name.size() > 1024) return false;
  const bool odd = std::any_of(name.begin(), name.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte < 32 || byte == 127 || c == '\\';
  });
  if (odd) return false;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('/', begin), name.size());
    const std::string_view part = name.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return false;
    begin = end + 1;
  }
  return true;
}

bool is_commit_hash(std::string_view text) {
  return text.size() == 40 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (!error) return;
  throw_error(error_kind_of(error.value()), folder.string(), ": cannot be made (", error.message(),
              is_disk_full(error.value()) ? "); free disk space" : "); choose a folder that can be written");
}

HubRepoCache::HubRepoCache(fs::path cache, HubRepoKind kind, const std::string& repo)
    : cache_(std::move(cache)), name_(repo_folder_name(kind, repo)), folder_(cache_ / name_) {}

fs::path HubRepoCache::lock_file(const std::string& etag) const { return cache_ / ".locks" / name_ / (etag + ".lock"); }

std::optional<std::string> HubRepoCache::commit_of(const std::string& revision) const {
  if (is_commit_hash(revision)) return revision;
  const fs::path ref = folder_ / "refs" / revision;
  std::error_code error;
  if (!fs::is_regular_file(ref, error)) return std::nullopt;
  std::string commit = read_file(ref, kMaxRefBytes);
  while (!commit.empty() && (commit.back() == '\n' || commit.back() == ' ')) commit.pop_back();
  if (!is_commit_hash(commit)) {
    throw_error(ErrorKind::kBadInput, ref.string(), ": expected a commit of 40 hexadecimal digits; delete this file");
  }
  return commit;
}

void HubRepoCache::remember_commit(const std::string& revision, const std::string& commit) const {
  if (revision == commit) return;
  const fs::path ref = folder_ / "refs" / revision;
  std::error_code error;
  if (fs::is_regular_file(ref, error) && fs::file_size(ref, error) == commit.size() && read_file(ref) == commit) return;
  make_folder(ref.parent_path());
  write_file_atomically(ref, commit);
}

std::optional<fs::path> HubRepoCache::find(const std::string& commit, const std::string& file) const {
  fs::path path = snapshot(commit) / file;
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return std::nullopt;  // follows the link
  return path;
}

std::vector<std::string> HubRepoCache::files(const std::string& commit) const {
  std::vector<std::string> names;
  std::error_code error;
  const fs::path root = snapshot(commit);
  for (fs::recursive_directory_iterator entry(root, error), end; !error && entry != end; entry.increment(error)) {
    std::error_code ignored;
    if (entry->is_regular_file(ignored)) names.push_back(entry->path().lexically_relative(root).generic_string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

fs::path HubRepoCache::link(const std::string& commit, const std::string& file, const std::string& etag) const {
  fs::path path = snapshot(commit) / file;
  make_folder(path.parent_path());
  put_symlink(blob(etag).lexically_relative(path.parent_path()), path, blob(etag));
  return path;
}

HubLock::HubLock(const fs::path& path, const std::string& what) {
  make_folder(path.parent_path());
  for (bool told = false;;) {
    file_ = File(path, O_RDWR | O_CREAT);
    if (!file_.is_open()) {
      const int code = errno;
      throw_error(error_kind_of(code), path.string(), ": cannot be opened (", std::strerror(code),
                  "); set HF_HOME to a folder that can be written");
    }
    // A file system without locks: one process alone still works, as with huggingface_hub's soft locks.
    const bool locked = file_.lock() || errno == ENOSYS || errno == ENOTSUP;
    if (locked && file_.is_still_at(path)) return;
    file_.close();
    if (locked) continue;
    if (!told) log(LogLevel::kInfo, what + " is being downloaded by another process; waiting for it");
    told = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    check_interrupt();
  }
}

}  // namespace dynslice
