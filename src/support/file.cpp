#include "dynslice/support/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace dynslice {
namespace {

// Bytes of one system call: Linux takes at most 2 GiB less one page.
constexpr size_t kLargestCall = size_t{1} << 30;

// Calls `write_some(first byte, bytes)` until all are written.
template <typename WriteSome>
bool write_all(std::span<const std::byte> bytes, const WriteSome& write_some) {
  while (!bytes.empty()) {
    const ssize_t n = write_some(bytes.data(), std::min(bytes.size(), kLargestCall));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return true;
}

}  // namespace

File::File(const std::filesystem::path& path, int flags) : descriptor_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {}

File::File(File&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}

File& File::operator=(File&& other) noexcept {
  if (this == &other) return *this;
  close();
  descriptor_ = std::exchange(other.descriptor_, -1);
  return *this;
}

void File::close() {
  if (!is_open()) return;
  const int code = errno;
  ::close(std::exchange(descriptor_, -1));
  errno = code;
}

bool File::write(std::span<const std::byte> bytes) const {
  return write_all(bytes, [this](const std::byte* first, size_t count) { return ::write(descriptor_, first, count); });
}

bool File::write_at(std::span<const std::byte> bytes, uint64_t offset) const {
  const std::byte* begin = bytes.data();
  return write_all(bytes, [&](const std::byte* first, size_t count) {
    return ::pwrite(descriptor_, first, count, static_cast<off_t>(offset) + (first - begin));
  });
}

std::optional<size_t> File::read_at(std::span<std::byte> bytes, uint64_t offset) const {
  size_t done = 0;
  while (done < bytes.size()) {
    const size_t count = std::min(bytes.size() - done, kLargestCall);
    const ssize_t n = ::pread(descriptor_, bytes.data() + done, count, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return std::nullopt;
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return done;
}

bool File::sync() const { return ::fsync(descriptor_) == 0; }
bool File::sync_data() const { return ::fdatasync(descriptor_) == 0; }

bool File::lock() const { return ::flock(descriptor_, LOCK_EX | LOCK_NB) == 0; }

bool File::is_still_at(const std::filesystem::path& path) const {
  struct stat held{}, named{};
  return ::fstat(descriptor_, &held) == 0 && ::stat(path.c_str(), &named) == 0 && held.st_ino == named.st_ino &&
         held.st_dev == named.st_dev;
}

}  // namespace dynslice
