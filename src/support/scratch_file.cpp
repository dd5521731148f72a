#include "dynslice/support/scratch_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "dynslice/support/environment.h"
#include "dynslice/support/error.h"
#include "dynslice/support/file.h"
#include "dynslice/support/system_error.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

uint64_t page_bytes() { return static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)); }
uint64_t whole_pages(uint64_t bytes) { return (bytes + page_bytes() - 1) / page_bytes() * page_bytes(); }

// A file without a name; where the file system cannot make one, a file whose name is removed at once.
File open_unnamed(const fs::path& folder) {
  File unnamed(::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (unnamed.is_open() || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return unnamed;
  std::string name = (folder / "dynslice-scratch-XXXXXX").string();
  File named(::mkostemp(name.data(), O_CLOEXEC));
  if (named.is_open()) ::unlink(name.c_str());
  return named;
}

}  // namespace

fs::path default_scratch_folder() {
  const std::string chosen = environment("TMPDIR");
  if (!chosen.empty()) return chosen;
  return ::access("/var/tmp", W_OK | X_OK) == 0 ? "/var/tmp" : "/tmp";
}

class ScratchFile::Impl : public std::enable_shared_from_this<Impl> {
 public:
  explicit Impl(fs::path folder) : folder_(std::move(folder)), file_(open_unnamed(folder_)) {
    if (!file_.is_open()) {
      const int code = errno;
      throw_error(error_kind_of(code), folder_.string(), ": no scratch file can be made there (", std::strerror(code),
                  "); choose another folder with --scratch-dir");
    }
  }
  ~Impl() {
    for (const auto& [address, block] : blocks_) ::munmap(address, block.bytes);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  std::byte* take(uint64_t asked) {
    const uint64_t bytes = whole_pages(asked);
    const std::lock_guard lock(mutex_);
    auto best = blocks_.end();
    for (auto it = blocks_.begin(); it != blocks_.end(); ++it) {
      if (it->second.is_free && it->second.bytes >= bytes &&
          (best == blocks_.end() || it->second.bytes < best->second.bytes)) {
        best = it;
      }
    }
    if (best == blocks_.end()) {
      give_up_one_too_small();
      best = add_block(bytes);
    }
    best->second.is_free = false;
    return best->first;
  }

  void give_back(std::byte* address) {
    const std::lock_guard lock(mutex_);
    Block& block = blocks_.at(address);
    block.is_free = true;
    drop_pages(address, block.bytes);
  }

  bool contains(const std::byte* pointer) const {
    const std::lock_guard lock(mutex_);
    auto after = blocks_.upper_bound(const_cast<std::byte*>(pointer));
    if (after == blocks_.begin()) return false;
    const auto& [address, block] = *--after;
    return pointer < address + block.bytes;
  }

  uint64_t file_bytes() const {
    const std::lock_guard lock(mutex_);
    return largest_;
  }

  bool is_in_memory() const {
    struct statfs status{};
    return ::fstatfs(file_.descriptor(), &status) == 0 &&
           (status.f_type == TMPFS_MAGIC || status.f_type == RAMFS_MAGIC);
  }

 private:
  struct Block {
    uint64_t offset = 0;
    uint64_t bytes = 0;
    bool is_free = true;
  };
  using Blocks = std::map<std::byte*, Block>;

  // When the width of a stream grows, its old blocks serve no more: their room on the disk goes to the new ones.
  void give_up_one_too_small() {
    const auto free = std::ranges::find_if(blocks_, [](const auto& entry) { return entry.second.is_free; });
    if (free == blocks_.end()) return;
    const Block block = free->second;
    if (::fallocate(file_.descriptor(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(block.offset),
                    static_cast<off_t>(block.bytes)) != 0) {
      return;
    }
    ::munmap(free->first, block.bytes);
    blocks_.erase(free);
    in_use_ -= block.bytes;
  }

  Blocks::iterator add_block(uint64_t bytes) {
    const int code = ::posix_fallocate(file_.descriptor(), static_cast<off_t>(end_), static_cast<off_t>(bytes));
    if (code != 0) {
      throw_error(ErrorKind::kOutOfResources, folder_.string(), ": has no room for ", in_use_ + bytes,
                  " bytes of scratch file (", std::strerror(code),
                  "); free disk space, choose another folder with --scratch-dir, or raise --activation-memory");
    }
    void* address =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_.descriptor(), static_cast<off_t>(end_));
    if (address == MAP_FAILED) {
      throw_error(ErrorKind::kOutOfResources, folder_.string(), ": a scratch file of ", in_use_ + bytes,
                  " bytes cannot be mapped (", std::strerror(errno), ")");
    }
    const auto added = blocks_.emplace(static_cast<std::byte*>(address), Block{end_, bytes, true}).first;
    end_ += bytes;
    in_use_ += bytes;
    largest_ = std::max(largest_, in_use_);
    return added;
  }

  fs::path folder_;
  File file_;
  mutable std::mutex mutex_;
  Blocks blocks_;
  uint64_t end_ = 0;     // where the next block begins
  uint64_t in_use_ = 0;  // bytes of the file that have room on the disk
  uint64_t largest_ = 0;
};

ScratchFile::ScratchFile(const fs::path& folder) : impl_(std::make_shared<Impl>(folder)) {}

std::shared_ptr<std::byte> ScratchFile::allocate(uint64_t bytes) {
  return {impl_->take(bytes), [impl = impl_](std::byte* address) { impl->give_back(address); }};
}

bool ScratchFile::contains(const void* pointer) const {
  return impl_->contains(static_cast<const std::byte*>(pointer));
}
uint64_t ScratchFile::file_bytes() const { return impl_->file_bytes(); }
bool ScratchFile::is_in_memory() const { return impl_->is_in_memory(); }

void ScratchFile::drop_pages(const void* block, uint64_t bytes) {
  ::madvise(const_cast<void*>(block), whole_pages(bytes), MADV_DONTNEED);
}

}  // namespace dynslice
