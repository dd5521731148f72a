#include "dynslice/formats/gguf/gguf_writer.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <limits>
#include <set>

#include "dynslice/support/check.h"
#include "dynslice/support/error.h"
#include "dynslice/support/file.h"
#include "dynslice/support/files.h"
#include "dynslice/support/system_error.h"
#include "formats/gguf/gguf_value_type.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kAlignment = 32;
constexpr uint32_t kVersion = 3;
constexpr std::string_view kMagic = "GGUF";
constexpr std::array<std::byte, kAlignment> kPadding{};

uint64_t padded(uint64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

template <typename T>
bool all_fit(const std::vector<int64_t>& values) {
  return std::ranges::all_of(values, [](int64_t value) { return std::in_range<T>(value); });
}

// Everything before the tensors, in memory.
class HeaderWriter {
 public:
  std::string take() { return std::move(bytes_); }
  void raw(std::string_view bytes) { bytes_ += bytes; }
  template <typename T>
  void scalar(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void string(std::string_view text) {
    scalar<uint64_t>(text.size());
    bytes_ += text;
  }

  void value(bool value) {
    scalar<uint32_t>(kBool);
    scalar<uint8_t>(value ? 1 : 0);
  }
  void value(int64_t value) {
    const bool narrow = std::in_range<uint32_t>(value);
    scalar<uint32_t>(narrow ? kUint32 : kInt64);
    narrow ? scalar(static_cast<uint32_t>(value)) : scalar(value);
  }
  void value(double value) {
    scalar<uint32_t>(kFloat32);
    scalar(static_cast<float>(value));
  }
  void value(const std::string& value) {
    scalar<uint32_t>(kString);
    string(value);
  }
  void value(const std::vector<bool>& values) {
    array(kBool, values.size());
    for (const bool value : values) scalar<uint8_t>(value ? 1 : 0);
  }
  void value(const std::vector<int64_t>& values) {
    const bool narrow = all_fit<int32_t>(values);
    array(narrow ? kInt32 : kInt64, values.size());
    for (const int64_t value : values) narrow ? scalar(static_cast<int32_t>(value)) : scalar(value);
  }
  void value(const std::vector<double>& values) {
    array(kFloat32, values.size());
    for (const double value : values) scalar(static_cast<float>(value));
  }
  void value(const std::vector<std::string>& values) {
    array(kString, values.size());
    for (const std::string& value : values) string(value);
  }

 private:
  void array(GgufValueType type, uint64_t count) {
    scalar<uint32_t>(kArray);
    scalar<uint32_t>(type);
    scalar(count);
  }

  std::string bytes_;
};

std::string make_header(const GgufMetadata& metadata, const std::vector<GgufOutputTensor>& tensors) {
  HeaderWriter out;
  out.raw(kMagic);
  out.scalar(kVersion);
  out.scalar<uint64_t>(tensors.size());
  out.scalar<uint64_t>(metadata.size());
  for (const auto& [key, value] : metadata) {
    out.string(key);
    std::visit([&out](const auto& held) { out.value(held); }, value);
  }
  uint64_t offset = 0;
  for (const GgufOutputTensor& tensor : tensors) {
    out.string(tensor.name);
    out.scalar(static_cast<uint32_t>(tensor.shape.size()));
    for (auto size = tensor.shape.rbegin(); size != tensor.shape.rend(); ++size) {
      out.scalar(static_cast<uint64_t>(*size));
    }
    out.scalar(static_cast<uint32_t>(tensor.type));
    out.scalar(offset);
    offset += padded(count_bytes(tensor));
  }
  std::string header = out.take();
  header.resize(padded(header.size()), '\0');
  return header;
}

void check_names(const GgufMetadata& metadata, const std::vector<GgufOutputTensor>& tensors) {
  std::set<std::string> names;
  for (const auto& [key, value] : metadata) {
    DYNSLICE_CHECK(names.insert(key).second, "GgufWriter: key ", key, " is given twice");
  }
  names.clear();
  for (const GgufOutputTensor& tensor : tensors) {
    DYNSLICE_CHECK(names.insert(tensor.name).second, "GgufWriter: tensor ", tensor.name, " is given twice");
  }
}

bool begins_with_magic(const fs::path& path) {
  std::string magic(kMagic.size(), '\0');
  return std::ifstream(path, std::ios::binary).read(magic.data(), static_cast<std::streamsize>(magic.size())) &&
         magic == kMagic;
}

void check_output(const fs::path& out, bool force) {
  std::error_code error;
  if (!fs::exists(fs::symlink_status(out, error))) return;
  if (!force) throw_error(ErrorKind::kUsage, out.string(), ": exists; choose another file with -o, or give --force");
  if (fs::is_regular_file(out, error) && begins_with_magic(out)) return;
  throw_error(ErrorKind::kUsage, out.string(), ": is no GGUF file: --force replaces nothing else; choose another file");
}

void check_room(const fs::path& out, uint64_t needed) {
  const fs::path folder = fs::absolute(out).parent_path();
  struct statvfs disk{};
  if (::statvfs(folder.c_str(), &disk) != 0) throw_system_error(folder, "cannot be written to", errno);
  const uint64_t available = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize;
  if (needed <= available) return;
  throw_error(ErrorKind::kOutOfResources, folder.string(), ": the file needs ", needed, " bytes, the disk has ",
              available, " left; free disk space or choose another folder");
}

}  // namespace

uint64_t count_bytes(const GgufOutputTensor& tensor) {
  const GgmlFormat& format = ggml_format(tensor.type);
  DYNSLICE_CHECK(!tensor.shape.empty() && tensor.shape.back() % format.values == 0, "the rows of ", tensor.name,
                 " are no whole blocks of ", format.name);
  int64_t values = 1;
  for (const int64_t size : tensor.shape) values *= size;
  return static_cast<uint64_t>(values / format.values * format.bytes);
}

class GgufWriter::Impl {
 public:
  Impl(const fs::path& out, const GgufMetadata& metadata, std::vector<GgufOutputTensor> tensors, bool force);
  ~Impl();

  const fs::path& partial() const { return partial_; }
  uint64_t file_bytes() const { return file_bytes_; }
  void write(const std::string& name, std::span<const std::byte> bytes);
  void commit();

 private:
  void append(std::span<const std::byte> bytes) const;

  fs::path out_, partial_;
  bool force_;
  std::vector<GgufOutputTensor> tensors_;
  uint64_t file_bytes_ = 0;
  File file_;
  size_t current_ = 0;       // tensor that is being written
  uint64_t in_current_ = 0;  // bytes of it that are there
};

GgufWriter::Impl::Impl(const fs::path& out, const GgufMetadata& metadata, std::vector<GgufOutputTensor> tensors,
                       bool force)
    : out_(out), partial_(out), force_(force), tensors_(std::move(tensors)) {
  partial_ += ".partial";
  check_names(metadata, tensors_);
  check_output(out_, force_);
  const std::string header = make_header(metadata, tensors_);
  file_bytes_ = header.size();
  for (const GgufOutputTensor& tensor : tensors_) file_bytes_ += padded(count_bytes(tensor));
  check_room(out_, file_bytes_);
  // What a killed run left is written over; what another run is writing is not.
  file_ = File(partial_, O_WRONLY | O_CREAT | O_NOFOLLOW);
  if (!file_.is_open()) throw_system_error(partial_, "cannot be created", errno);
  // Another run may have renamed its finished file away between our opening and locking it.
  if (!file_.lock() || !file_.is_still_at(partial_)) {
    throw_error(ErrorKind::kUsage, partial_.string(), ": another run is writing it; wait for it or choose another -o");
  }
  try {
    if (::ftruncate(file_.descriptor(), 0) != 0) throw_system_error(partial_, "cannot be written", errno);
    append(std::as_bytes(std::span(header)));
  } catch (...) {  // no destructor runs for an object whose constructor failed
    ::unlink(partial_.c_str());
    throw;
  }
}

GgufWriter::Impl::~Impl() {
  if (file_.is_open()) ::unlink(partial_.c_str());  // while it is locked
}

void GgufWriter::Impl::append(std::span<const std::byte> bytes) const {
  if (!file_.write(bytes)) throw_system_error(partial_, "cannot be written", errno);
}

void GgufWriter::Impl::write(const std::string& name, std::span<const std::byte> bytes) {
  DYNSLICE_CHECK(current_ < tensors_.size() && tensors_[current_].name == name, "GgufWriter: tensor ", name,
                 " is not the one that comes next");
  const uint64_t size = count_bytes(tensors_[current_]);
  DYNSLICE_CHECK(bytes.size() <= size - in_current_, "GgufWriter: too many bytes for tensor ", name);
  append(bytes);
  in_current_ += bytes.size();
  if (in_current_ < size) return;
  append(std::span(kPadding).first(padded(size) - size));
  in_current_ = 0;
  ++current_;
}

void GgufWriter::Impl::commit() {
  DYNSLICE_CHECK(file_.is_open(), "GgufWriter: commit was called before");
  DYNSLICE_CHECK(current_ == tensors_.size(), "GgufWriter: tensor ", tensors_.at(current_).name, " is not whole");
  if (!file_.sync()) throw_system_error(partial_, "cannot be written", errno);
  check_output(out_, force_);  // it may have come into being since
  if (::rename(partial_.c_str(), out_.c_str()) != 0) {
    throw_system_error(out_, "cannot be renamed to from " + partial_.string(), errno);
  }
  file_.close();
  sync_path(fs::absolute(out_).parent_path());
}

GgufWriter::GgufWriter(const fs::path& out, const GgufMetadata& metadata, std::vector<GgufOutputTensor> tensors,
                       bool force)
    : impl_(std::make_unique<Impl>(out, metadata, std::move(tensors), force)) {}

GgufWriter::~GgufWriter() = default;

void GgufWriter::write(const std::string& name, std::span<const std::byte> bytes) { impl_->write(name, bytes); }
void GgufWriter::commit() { impl_->commit(); }
const fs::path& GgufWriter::partial() const { return impl_->partial(); }
uint64_t GgufWriter::file_bytes() const { return impl_->file_bytes(); }

}  // namespace dynslice
