#include "dynslice/support/system_error.h"

#include <cerrno>
#include <cstring>

namespace dynslice {

bool is_disk_full(int code) { return code == ENOSPC || code == EDQUOT || code == EFBIG; }

ErrorKind error_kind_of(int code, ErrorKind otherwise) {
  if (is_disk_full(code) || code == ENOMEM) return ErrorKind::kOutOfResources;
  return code == ENOENT ? ErrorKind::kMissingData : otherwise;
}

void throw_system_error(const std::filesystem::path& path, std::string_view what, int code) {
  throw_error(error_kind_of(code), path.string(), ": ", what, " (", std::strerror(code),
              is_disk_full(code) ? "); free disk space or choose another folder" : ")");
}

}  // namespace dynslice
