#include "dynslice/support/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>

#include "dynslice/support/error.h"
#include "dynslice/support/file.h"
#include "dynslice/support/system_error.h"

namespace dynslice {
namespace {

[[noreturn]] void throw_read_error(const std::filesystem::path& path, std::string_view what) {
  const int code = errno;
  throw_error(error_kind_of(code, ErrorKind::kBadInput), path.string(), ": ", what, " (", std::strerror(code), ")");
}

[[noreturn]] void throw_write_error(const std::filesystem::path& path) {
  throw_system_error(path, "cannot be written", errno);
}

File open_for_reading(const std::filesystem::path& path, struct stat& status) {
  File file(path, O_RDONLY | O_NONBLOCK);
  if (!file.is_open()) throw_read_error(path, "cannot be opened");
  if (::fstat(file.descriptor(), &status) != 0 || !S_ISREG(status.st_mode)) {
    throw_error(ErrorKind::kBadInput, path.string(), ": is not a regular file");
  }
  return file;
}

// Removes an unfinished file, and tells the failure that came before.
[[noreturn]] void give_up_writing(const std::filesystem::path& temporary, const std::filesystem::path& path) {
  const int code = errno;
  ::unlink(temporary.c_str());
  throw_system_error(path, "cannot be written", code);
}

}  // namespace

std::string read_file(const std::filesystem::path& path, uint64_t max_bytes) {
  struct stat status{};
  const File file = open_for_reading(path, status);
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > max_bytes) {
    throw_error(ErrorKind::kBadInput, path.string(), ": has ", size, " bytes; at most ", max_bytes, " are expected");
  }
  std::string content(size, '\0');
  const std::optional<size_t> done = file.read_at(std::as_writable_bytes(std::span(content)), 0);
  if (!done) throw_read_error(path, "cannot be read");
  content.resize(*done);
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
    const File file(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    if (!file.is_open()) throw_write_error(path);
    if (!file.write(std::as_bytes(std::span(content))) || !file.sync()) give_up_writing(temporary, path);
  }
  if (before_rename) before_rename();
  if (::rename(temporary.c_str(), path.c_str()) != 0) give_up_writing(temporary, path);
}

void sync_path(const std::filesystem::path& path) {
  const File file(path, O_RDONLY);
  if (!file.is_open() || !file.sync()) throw_write_error(path);
}

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  struct stat status{};
  const File file = open_for_reading(path, status);
  size_ = static_cast<uint64_t>(status.st_size);
  if (size_ == 0) return;
  // PROT_WRITE with MAP_PRIVATE: in-place operations on a wrapped tensor copy the page instead of faulting.
  void* address = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file.descriptor(), 0);
  if (address == MAP_FAILED) throw_read_error(path, "cannot be mapped");
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
