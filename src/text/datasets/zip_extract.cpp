#include "text/datasets/zip_extract.h"

#include <zip.h>

#include <algorithm>
#include <memory>

#include "dynslice/support/error.h"

namespace dynslice {
namespace {

constexpr size_t kBlockBytes = size_t{1} << 20;

void discard_archive(zip_t* archive) { zip_discard(archive); }
void close_member(zip_file_t* member) { zip_fclose(member); }

using Archive = std::unique_ptr<zip_t, decltype(&discard_archive)>;
using Member = std::unique_ptr<zip_file_t, decltype(&close_member)>;

Archive open_archive(const std::filesystem::path& path) {
  int code = 0;
  Archive archive(zip_open(path.c_str(), ZIP_RDONLY, &code), discard_archive);
  if (archive != nullptr) return archive;
  zip_error_t error;
  zip_error_init_with_code(&error, code);
  const std::string reason = zip_error_strerror(&error);
  zip_error_fini(&error);
  throw_error(ErrorKind::kBadInput, path.string(), ": is not a zip archive (", reason,
              "); delete it and download it again");
}

}  // namespace

std::string read_zip_member(const std::filesystem::path& archive_path, const std::string& member_name,
                            uint64_t max_bytes) {
  const Archive archive = open_archive(archive_path);
  const auto fail = [&](const std::string& what) {
    throw_error(ErrorKind::kBadInput, archive_path.string(), ": member ", member_name, ": ", what,
                "; delete the archive and download it again");
  };
  const zip_int64_t index = zip_name_locate(archive.get(), member_name.c_str(), 0);
  if (index < 0) fail("is missing");
  const Member member(zip_fopen_index(archive.get(), static_cast<zip_uint64_t>(index), 0), close_member);
  if (member == nullptr) fail(std::string("cannot be opened (") + zip_strerror(archive.get()) + ")");
  // The announced size is not believed: what comes out is counted.
  std::string content;
  std::string block(static_cast<size_t>(std::min<uint64_t>(kBlockBytes, max_bytes + 1)), '\0');
  for (;;) {
    const zip_int64_t n = zip_fread(member.get(), block.data(), block.size());
    if (n == 0) return content;
    if (n < 0) fail(std::string("is broken (") + zip_file_strerror(member.get()) + ")");
    if (static_cast<uint64_t>(n) > max_bytes - content.size())
      fail("is larger than " + std::to_string(max_bytes) + " bytes");
    content.append(block.data(), static_cast<size_t>(n));
  }
}

}  // namespace dynslice
