#include "dynslice/checkpoint/checkpoint_writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <span>
#include <utility>

#include "aten.h"
#include "checkpoint/chunks.h"
#include "dynslice/support/check.h"
#include "dynslice/support/error.h"
#include "dynslice/support/file.h"
#include "dynslice/support/files.h"
#include "dynslice/support/hash.h"
#include "dynslice/support/json.h"
#include "dynslice/support/system_error.h"
#include "dynslice/tensor/dtype.h"
#include "dynslice/tensor/kernels.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

// Beyond the tensors: headers, index, tokenizer, configuration.
constexpr uint64_t kOtherBytes = uint64_t{32} << 20;

// `out` without "." or a slash at its end, so that names can be appended to it.
fs::path plain_path(const fs::path& out) {
  fs::path path = out.lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  if (path.empty() || path.filename() == "." || path.filename() == ".." || path == path.root_path()) {
    throw_error(ErrorKind::kUsage, "output folder \"", out.string(),
                "\" cannot be replaced; give the name of a new folder");
  }
  return path;
}

fs::path with_suffix(fs::path path, const std::string& suffix) {
  path += suffix;
  return path;
}

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::symlink_status(path, ignored).type() != fs::file_type::not_found;
}

// Nothing but a checkpoint (or an empty folder) is ever replaced.
void check_output(const fs::path& out, bool force) {
  if (!is_there(out)) return;
  if (!force)
    throw_error(ErrorKind::kUsage, out.string(), ": exists already; choose another output folder or give --force");
  std::error_code error;
  const bool is_empty = fs::is_directory(out, error) && fs::is_empty(out, error) && !error;
  if (is_empty || fs::exists(out / "dynslice.json", error)) return;
  throw_error(ErrorKind::kUsage, out.string(),
              ": has no dynslice.json: --force replaces only what dynslice wrote; choose another output folder");
}

void check_room(const fs::path& folder, uint64_t needed) {
  struct statvfs disk{};
  if (::statvfs(folder.c_str(), &disk) != 0) return;  // then writing will tell
  const uint64_t available = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize;
  if (needed <= available) return;
  throw_error(ErrorKind::kOutOfResources, folder.string(), ": the checkpoint needs ", needed, " bytes, the disk has ",
              available, " left; free disk space or choose another folder");
}

void write_at(const File& file, const fs::path& path, std::span<const std::byte> bytes, uint64_t offset) {
  if (!file.write_at(bytes, offset)) throw_system_error(path, "cannot be written", errno);
}

void check_finite(const std::string& name, const at::Tensor& values) {
  if (kernels::all_finite(values)) return;
  throw_error(ErrorKind::kBadInput, "tensor \"", name, "\" to be written holds NaN or Inf as ",
              c10::toString(values.scalar_type()), "; the input or its dtype does not allow this computation");
}

// One safetensors file to be.
struct Shard {
  std::vector<size_t> tensors;  // indices into the announced ones
  uint64_t bytes = 0;
  std::string name;
  File file;
};

// Behind the last of the tensors from `first` on that the file has as one: their rows lie one after the other.
size_t end_of_stored(const std::vector<OutputTensor>& tensors, size_t first) {
  size_t end = first + 1;
  while (end < tensors.size() && tensors[end].stored_name() == tensors[first].stored_name()) ++end;
  return end;
}

std::vector<Shard> assign_shards(const std::vector<OutputTensor>& tensors, uint64_t max_bytes,
                                 const std::string& stem) {
  std::vector<Shard> shards(1);
  for (size_t i = 0; i < tensors.size();) {
    const size_t end = end_of_stored(tensors, i);
    uint64_t bytes = 0;
    for (size_t part = i; part < end; ++part) bytes += count_bytes(tensors[part]);
    const uint64_t used = shards.back().bytes;
    if (used > 0 && (used > max_bytes || bytes > max_bytes - used)) shards.emplace_back();
    for (; i < end; ++i) shards.back().tensors.push_back(i);
    shards.back().bytes += bytes;
  }
  for (size_t k = 0; k < shards.size(); ++k) {
    char part[32] = "";
    if (shards.size() > 1) std::snprintf(part, sizeof part, "-%05zu-of-%05zu", k + 1, shards.size());
    shards[k].name = stem + part + ".safetensors";
  }
  return shards;
}

}  // namespace

class CheckpointWriter::Impl {
 public:
  Impl(const fs::path& out, std::vector<OutputTensor> tensors, bool force, std::shared_ptr<WorkFolder> folder,
       const OrderedJson& written, uint64_t max_shard_bytes, std::string stem);

  const fs::path& folder() const { return partial_; }
  uint64_t tensor_bytes() const { return tensor_bytes_; }
  void write(const std::string& name, const at::Tensor& values);
  void write_rows(const std::string& name, int64_t begin, const at::Tensor& rows);
  OrderedJson written() const;
  void commit(const std::function<void()>& before_rename);

 private:
  // Where a tensor goes.
  struct Place {
    size_t tensor = 0;
    size_t shard = 0;
    uint64_t offset = 0;
    bool written = false;
    int64_t rows_written = 0;  // of a tensor that comes in blocks
    Checksum checksum_so_far{};
    std::string checksum{};  // once written
  };

  Place& place_of(const std::string& name);
  void write_values(const std::string& name, Place& place, const at::Tensor& rows, uint64_t offset) const;

  void open_shards(const OrderedJson& written);
  std::string lay_out(size_t k);
  void start_shard(size_t k);
  void reopen_shard(size_t k);
  void check_written(const std::string& name, const std::string& checksum);
  void write_index() const;
  void sync_files() const;
  void swap_in();
  [[noreturn]] void fail_resume(const std::string& file, const std::string& what) const;

  fs::path out_, partial_;
  std::string stem_;
  bool force_;
  std::vector<OutputTensor> tensors_;
  std::vector<Shard> shards_;
  std::map<std::string, Place> places_;
  uint64_t tensor_bytes_ = 0;
  std::shared_ptr<WorkFolder> folder_;
};

CheckpointWriter::Impl::Impl(const fs::path& out, std::vector<OutputTensor> tensors, bool force,
                             std::shared_ptr<WorkFolder> folder, const OrderedJson& written, uint64_t max_shard_bytes,
                             std::string stem)
    : out_(plain_path(out)),
      partial_(with_suffix(out_, ".partial")),
      stem_(std::move(stem)),
      force_(force),
      tensors_(std::move(tensors)),
      folder_(folder != nullptr ? std::move(folder) : std::make_shared<WorkFolder>(partial_)) {
  check_output(out_, force_);
  shards_ = assign_shards(tensors_, max_shard_bytes, stem_);
  for (const Shard& shard : shards_) tensor_bytes_ += shard.bytes;
  folder_->open();
  open_shards(written);
}

void CheckpointWriter::Impl::open_shards(const OrderedJson& written) {
  const bool resumes = written.is_object();
  folder_->clear([&](const std::string& name) {
    const auto is_shard = [&](const Shard& shard) { return shard.name == name; };
    return is_journal_file(name) || (resumes && std::any_of(shards_.begin(), shards_.end(), is_shard));
  });
  if (!resumes) check_room(partial_, tensor_bytes_ + kOtherBytes);
  for (size_t k = 0; k < shards_.size(); ++k) resumes ? reopen_shard(k) : start_shard(k);
  if (!resumes) return;
  for (const auto& [name, checksum] : written.items()) {
    if (!places_.contains(name) || !checksum.is_string()) fail_resume(name, "is no tensor of this checkpoint");
    check_written(name, checksum.get<std::string>());
  }
}

// Places the tensors of shard k; its header, which is known before any tensor is.
std::string CheckpointWriter::Impl::lay_out(size_t k) {
  OrderedJson header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t offset = 0;
  for (const size_t index : shards_[k].tensors) {
    const OutputTensor& tensor = tensors_[index];
    const bool is_new = places_.emplace(tensor.name, Place{index, k, offset}).second;
    DYNSLICE_CHECK(is_new, "CheckpointWriter: tensor ", tensor.name, " is announced twice");
    const uint64_t end = offset + count_bytes(tensor);
    OrderedJson& entry = header[tensor.stored_name()];
    if (tensor.stored.first_row == 0) {
      entry = {{"dtype", file_dtype_name(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    } else {
      DYNSLICE_CHECK(entry.is_object() && entry["shape"][0] == tensor.stored.first_row, "CheckpointWriter: tensor ",
                     tensor.name, " is not announced behind those that it shares a tensor with");
      entry["shape"][0] = tensor.stored.first_row + tensor.shape.front();
      entry["data_offsets"][1] = end;
    }
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  for (const size_t index : shards_[k].tensors) places_[tensors_[index].name].offset += sizeof length + length;
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + text;
}

void CheckpointWriter::Impl::start_shard(size_t k) {
  const std::string header = lay_out(k);
  const fs::path path = partial_ / shards_[k].name;
  shards_[k].file = File(path, O_RDWR | O_CREAT | O_EXCL);
  if (!shards_[k].file.is_open()) throw_system_error(path, "cannot be created", errno);
  write_at(shards_[k].file, path, std::as_bytes(std::span(header)), 0);
}

void CheckpointWriter::Impl::reopen_shard(size_t k) {
  const std::string header = lay_out(k);
  Shard& shard = shards_[k];
  shard.file = File(partial_ / shard.name, O_RDWR | O_NOFOLLOW);
  struct stat status{};
  if (!shard.file.is_open() || ::fstat(shard.file.descriptor(), &status) != 0 || !S_ISREG(status.st_mode)) {
    fail_resume(shard.name, "is missing");
  }
  std::string found(header.size(), '\0');
  const auto read = shard.file.read_at(std::as_writable_bytes(std::span(found)), 0);
  if (read != found.size() || found != header) fail_resume(shard.name, "has another layout");
}

// Compares a tensor that an earlier run wrote with its checksum.
void CheckpointWriter::Impl::check_written(const std::string& name, const std::string& checksum) {
  Place& place = places_.at(name);
  const Shard& shard = shards_[place.shard];
  Checksum found;
  std::string block(size_t{4} << 20, '\0');
  const uint64_t bytes = count_bytes(tensors_[place.tensor]);
  for (uint64_t done = 0; done < bytes; done += block.size()) {
    block.resize(std::min<uint64_t>(block.size(), bytes - done));
    const auto read = shard.file.read_at(std::as_writable_bytes(std::span(block)), place.offset + done);
    if (read != block.size()) fail_resume(shard.name, "ends within tensor " + name);
    found.update(block.data(), block.size());
  }
  if (found.hex() != checksum) fail_resume(shard.name, "tensor " + name + " has another checksum");
  place.written = true;
  place.checksum = checksum;
}

void CheckpointWriter::Impl::fail_resume(const std::string& file, const std::string& what) const {
  throw_error(ErrorKind::kBadInput, (partial_ / file).string(), ": is damaged (", what, "); delete ", partial_.string(),
              " or start without --resume");
}

// A tensor that still has to be written.
CheckpointWriter::Impl::Place& CheckpointWriter::Impl::place_of(const std::string& name) {
  const auto found = places_.find(name);
  DYNSLICE_CHECK(found != places_.end(), "CheckpointWriter: tensor ", name, " was not announced");
  DYNSLICE_CHECK(!found->second.written, "CheckpointWriter: tensor ", name, " was written before");
  return found->second;
}

void CheckpointWriter::Impl::write(const std::string& name, const at::Tensor& values) {
  Place& place = place_of(name);
  DYNSLICE_CHECK(place.rows_written == 0 && values.sizes() == at::IntArrayRef(tensors_[place.tensor].shape),
                 "CheckpointWriter: tensor ", name, " has another shape than announced");
  write_values(name, place, values.detach().dim() == 0 ? values.detach().reshape({1}) : values.detach(), place.offset);
  place.written = true;
  place.checksum = place.checksum_so_far.hex();
}

void CheckpointWriter::Impl::write_rows(const std::string& name, int64_t begin, const at::Tensor& rows) {
  Place& place = place_of(name);
  std::vector<int64_t> expected = tensors_[place.tensor].shape;
  const int64_t all = expected.empty() ? 0 : expected.front();
  const int64_t count = rows.dim() == 0 ? 0 : rows.size(0);
  if (!expected.empty()) expected.front() = count;
  DYNSLICE_CHECK(begin == place.rows_written && count <= all - begin && rows.sizes() == at::IntArrayRef(expected),
                 "CheckpointWriter: rows of tensor ", name, " are not the next ones, or of another shape");
  const uint64_t row_bytes = count_bytes(tensors_[place.tensor]) / static_cast<uint64_t>(std::max<int64_t>(1, all));
  write_values(name, place, rows.detach(), place.offset + static_cast<uint64_t>(begin) * row_bytes);
  place.rows_written += count;
  place.written = place.rows_written == all;
  if (place.written) place.checksum = place.checksum_so_far.hex();
}

void CheckpointWriter::Impl::write_values(const std::string& name, Place& place, const at::Tensor& rows,
                                          uint64_t offset) const {
  const OutputTensor& announced = tensors_[place.tensor];
  const Shard& shard = shards_[place.shard];
  const bool is_integer = c10::isIntegralType(announced.dtype, /*includeBool=*/false);
  DYNSLICE_CHECK(!is_integer || rows.scalar_type() == announced.dtype, "CheckpointWriter: tensor ", name,
                 " has another dtype than announced");
  const int64_t count = rows.size(0), row_values = count > 0 ? rows.numel() / count : 0;
  const int64_t step = std::max<int64_t>(1, kChunkValues / std::max<int64_t>(1, row_values));
  for (int64_t row = 0; row < count; row += step) {
    at::Tensor chunk = rows.narrow(0, row, std::min(step, count - row));
    if (announced.stored.offset != 0) chunk = chunk.to(at::kFloat) - announced.stored.offset;
    chunk = chunk.to(at::kCPU, announced.dtype).contiguous();
    if (!is_integer) check_finite(name, chunk);
    const auto* first = static_cast<const std::byte*>(chunk.const_data_ptr());
    write_at(shard.file, partial_ / shard.name, {first, chunk.nbytes()}, offset);
    place.checksum_so_far.update(first, chunk.nbytes());
    offset += chunk.nbytes();
  }
}

OrderedJson CheckpointWriter::Impl::written() const {
  OrderedJson names = OrderedJson::object();
  for (const OutputTensor& tensor : tensors_) {
    const Place& place = places_.at(tensor.name);
    if (place.written) names[tensor.name] = place.checksum;
  }
  for (const Shard& shard : shards_) {
    if (!shard.file.sync_data()) throw_system_error(partial_ / shard.name, "cannot be written", errno);
  }
  return names;
}

void CheckpointWriter::Impl::write_index() const {
  OrderedJson weight_map = OrderedJson::object();
  for (const Shard& shard : shards_) {
    for (const size_t index : shard.tensors) weight_map[tensors_[index].stored_name()] = shard.name;
  }
  const OrderedJson json = {{"metadata", {{"total_size", tensor_bytes_}}}, {"weight_map", std::move(weight_map)}};
  write_file_atomically(partial_ / (stem_ + ".safetensors.index.json"), json.dump(2) + "\n");
}

void CheckpointWriter::Impl::sync_files() const {
  std::error_code error;
  for (fs::directory_iterator entry(partial_, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->is_regular_file(error)) sync_path(entry->path());
  }
  if (error) throw_system_error(partial_, "cannot be read", error.value());
  sync_path(partial_);
}

// One step when a folder is replaced: both names change places, and there is no moment without a checkpoint.
void CheckpointWriter::Impl::swap_in() {
  check_output(out_, force_);  // it may have come into being since
  const bool replaces = is_there(out_);
  const auto rename = [&](unsigned int flags) {
    return ::renameat2(AT_FDCWD, partial_.c_str(), AT_FDCWD, out_.c_str(), flags) == 0;
  };
  const fs::path old = with_suffix(out_, ".old-" + std::to_string(::getpid()));
  fs::path replaced = partial_;
  if (!rename(replaces ? RENAME_EXCHANGE : 0)) {
    int code = errno;
    const bool cannot_exchange = replaces && (code == EINVAL || code == ENOSYS);  // of some file systems
    if (cannot_exchange) {
      replaced = old;
      if (::rename(out_.c_str(), old.c_str()) != 0) throw_system_error(out_, "cannot be moved aside", errno);
    }
    if (!cannot_exchange || ::rename(partial_.c_str(), out_.c_str()) != 0) {
      if (cannot_exchange) {
        code = errno;
        ::rename(old.c_str(), out_.c_str());
      }
      throw_system_error(out_, "cannot be renamed to from " + partial_.string(), code);
    }
  }
  folder_->release();
  sync_path(out_.has_parent_path() ? out_.parent_path() : fs::path("."));
  std::error_code ignored;
  if (replaces) fs::remove_all(replaced, ignored);
}

void CheckpointWriter::Impl::commit(const std::function<void()>& before_rename) {
  for (const auto& [name, place] : places_) {
    DYNSLICE_CHECK(place.written, "CheckpointWriter: tensor ", name, " was announced but never written");
  }
  DYNSLICE_CHECK(folder_->is_open(), "CheckpointWriter: commit was called before");
  if (shards_.size() > 1) write_index();
  sync_files();
  check_output(out_, force_);  // before what a run could go on from is removed
  if (before_rename) before_rename();
  swap_in();
}

CheckpointWriter::CheckpointWriter(const fs::path& out, std::vector<OutputTensor> tensors, bool force,
                                   uint64_t max_shard_bytes)
    : CheckpointWriter(out, std::move(tensors), force, nullptr, {}, max_shard_bytes) {}

CheckpointWriter::CheckpointWriter(const fs::path& out, std::vector<OutputTensor> tensors, bool force,
                                   std::shared_ptr<WorkFolder> folder, const OrderedJson& written,
                                   uint64_t max_shard_bytes, const std::string& stem)
    : impl_(std::make_unique<Impl>(out, std::move(tensors), force, std::move(folder), written, max_shard_bytes, stem)) {
}

CheckpointWriter::~CheckpointWriter() = default;

const fs::path& CheckpointWriter::folder() const { return impl_->folder(); }
uint64_t CheckpointWriter::tensor_bytes() const { return impl_->tensor_bytes(); }
void CheckpointWriter::write(const std::string& name, const at::Tensor& values) { impl_->write(name, values); }
void CheckpointWriter::write_rows(const std::string& name, int64_t begin, const at::Tensor& rows) {
  impl_->write_rows(name, begin, rows);
}
OrderedJson CheckpointWriter::written() const { return impl_->written(); }
void CheckpointWriter::commit(const std::function<void()>& before_rename) { impl_->commit(before_rename); }
fs::path CheckpointWriter::partial_folder(const fs::path& out) { return with_suffix(plain_path(out), ".partial"); }

void CheckpointWriter::write_text(const std::string& file_name, const std::string& content) {
  DYNSLICE_CHECK(!file_name.empty() && file_name.front() != '.' && file_name.find('/') == std::string::npos,
                 "CheckpointWriter: \"", file_name, "\" is no plain file name");
  write_file_atomically(impl_->folder() / file_name, content);
}

}  // namespace dynslice
