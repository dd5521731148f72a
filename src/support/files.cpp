#include "dynslice/support/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

// Closes the descriptor at the end of the scope.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.release()) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

std::string reason() { return std::strerror(errno); }

FileDescriptor open_for_reading(const std::filesystem::path& path, struct stat& status) {
  FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) {
    const auto kind = errno == ENOENT ? ErrorKind::kMissingData : ErrorKind::kBadInput;
    throw_error(kind, path.string(), ": cannot be opened (", reason(), ")");
  }
  if (::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode)) {
    throw_error(ErrorKind::kBadInput, path.string(), ": is not a regular file");
  }
  return file;
}

[[noreturn]] void throw_write_error(const std::filesystem::path& path) {
  const bool full = errno == ENOSPC || errno == EDQUOT || errno == EFBIG;
  throw_error(full ? ErrorKind::kOutOfResources : ErrorKind::kMissingData, path.string(), ": cannot be written (",
              reason(), full ? "); free disk space or choose another folder" : ")");
}

}  // namespace

std::string read_file(const std::filesystem::path& path, uint64_t max_bytes) {
  struct stat status{};
  const FileDescriptor file = open_for_reading(path, status);
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > max_bytes) {
    throw_error(ErrorKind::kBadInput, path.string(), ": has ", size, " bytes; at most ", max_bytes, " are expected");
  }
  std::string content(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t n = ::read(file.get(), content.data() + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_error(ErrorKind::kBadInput, path.string(), ": cannot be read (", reason(), ")");
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  content.resize(done);
  return content;
}

void write_file_atomically(const std::filesystem::path& target, std::string_view content,
                           const std::function<void()>& before_rename) {
  std::error_code error;
  // A link stays one: what it points to is replaced. A device or pipe (/dev/stdout) is written to, not replaced.
  const std::filesystem::path path =
      std::filesystem::is_symlink(target, error) ? std::filesystem::weakly_canonical(target, error) : target;
  if (std::filesystem::is_other(path, error)) {
    std::ofstream stream(path, std::ios::binary);
    if (!stream.write(content.data(), static_cast<std::streamsize>(content.size())).flush()) throw_write_error(path);
    return;
  }
  std::filesystem::path temporary = path;
  temporary += ".partial-" + std::to_string(::getpid());
  {
    const FileDescriptor file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (file.get() < 0) throw_write_error(path);
    size_t done = 0;
    while (done < content.size()) {
      const ssize_t n = ::write(file.get(), content.data() + done, content.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        const int saved = errno;
        ::unlink(temporary.c_str());
        errno = saved;
        throw_write_error(path);
      }
      done += static_cast<size_t>(n);
    }
    if (::fsync(file.get()) != 0) {
      ::unlink(temporary.c_str());
      throw_write_error(path);
    }
  }
  if (before_rename) before_rename();
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    ::unlink(temporary.c_str());
    throw_write_error(path);
  }
}

void sync_path(const std::filesystem::path& path) {
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0 || ::fsync(file.get()) != 0) throw_write_error(path);
}

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  struct stat status{};
  const FileDescriptor file = open_for_reading(path, status);
  size_ = static_cast<uint64_t>(status.st_size);
  if (size_ == 0) return;
  // PROT_WRITE with MAP_PRIVATE: in-place operations on a wrapped tensor copy the page instead of faulting.
  void* address = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file.get(), 0);
  if (address == MAP_FAILED) throw_error(ErrorKind::kBadInput, path.string(), ": cannot be mapped (", reason(), ")");
  const size_t length = size_;
  data_ = std::shared_ptr<const std::byte>(static_cast<const std::byte*>(address), [length](const std::byte* p) {
    ::munmap(const_cast<std::byte*>(p), length);
  });
}

void MappedFile::release(uint64_t offset, uint64_t length) const {
  // A page fault maps the pages around it too (64 KiB of them by default); what is dropped needlessly is only
  // mapped again.
  constexpr uint64_t kAround = uint64_t{1} << 16;
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  if (data_ == nullptr || length == 0 || offset >= size_) return;
  const uint64_t begin = (offset - std::min(offset, kAround)) / page * page;
  const uint64_t end = std::min(offset + length + kAround, size_);
  ::madvise(const_cast<std::byte*>(data_.get()) + begin, end - begin, MADV_DONTNEED);
}

}  // namespace dynslice
