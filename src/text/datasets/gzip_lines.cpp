#include "text/datasets/gzip_lines.h"

#include <zlib.h>

#include <system_error>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

constexpr unsigned kBlockBytes = 1U << 18;

}  // namespace

// zlib's reader, which passes files through that are not compressed.
class GzipLines::Source {
 public:
  explicit Source(const std::filesystem::path& path) : file_(gzopen(path.c_str(), "rb")) {}
  ~Source() {
    if (file_ != nullptr) gzclose(file_);
  }
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;
  gzFile get() const { return file_; }

 private:
  gzFile file_;
};

GzipLines::GzipLines(const std::filesystem::path& path, size_t max_line_bytes)
    : path_(path), max_line_bytes_(max_line_bytes) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) throw_error(ErrorKind::kMissingData, path.string(), ": does not exist");
  if (!std::filesystem::is_regular_file(path, error))
    throw_error(ErrorKind::kBadInput, path.string(), ": is not a file");
  source_ = std::make_unique<Source>(path);
  if (source_->get() == nullptr) throw_error(ErrorKind::kBadInput, path.string(), ": cannot be opened");
}

GzipLines::~GzipLines() = default;

void GzipLines::fail(const std::string& what) const {
  throw_error(ErrorKind::kBadInput, path_.string(), ": line ", number_ + 1, ": ", what,
              "; delete the file and download it again");
}

bool GzipLines::fill() {
  block_.resize(kBlockBytes);
  const int count = gzread(source_->get(), block_.data(), kBlockBytes);
  int code = Z_OK;
  const char* reason = gzerror(source_->get(), &code);
  if (code == Z_BUF_ERROR) fail("the compressed data ends early");
  if (count < 0 || code != Z_OK) fail(std::string("the compressed data is broken (") + reason + ")");
  block_.resize(static_cast<size_t>(count));
  place_ = 0;
  return count > 0;
}

std::optional<std::string> GzipLines::next() {
  std::string line;
  bool found = false;
  for (;;) {
    if (place_ == block_.size() && !fill()) break;
    found = true;
    const size_t end = block_.find('\n', place_);
    const size_t stop = end == std::string::npos ? block_.size() : end;
    if (line.size() + (stop - place_) > max_line_bytes_)
      fail("is longer than " + std::to_string(max_line_bytes_) + " bytes");
    line.append(block_, place_, stop - place_);
    place_ = stop;
    if (end == std::string::npos) continue;
    ++place_;
    break;
  }
  if (!found) return std::nullopt;
  ++number_;
  return line;
}

}  // namespace dynslice
