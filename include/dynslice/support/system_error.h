// Failures of system calls as errors of the library: one map from errno to the kind of error, so that the same full
// disk ends every command with the same exit code.
#pragma once

#include <filesystem>
#include <string_view>

#include "dynslice/support/error.h"

namespace dynslice {

// Whether an errno says that the disk, or what this user may take of it, is full: ENOSPC, EDQUOT, EFBIG.
[[nodiscard]] bool is_disk_full(int code);

// The kind of error that an errno is: kOutOfResources where disk or memory is full (ENOMEM), kMissingData where there
// is no such file (ENOENT), else `otherwise`.
[[nodiscard]] ErrorKind error_kind_of(int code, ErrorKind otherwise = ErrorKind::kMissingData);

// Throws "PATH: WHAT (REASON)" of that kind, with advice when the disk is full.
[[noreturn]] void throw_system_error(const std::filesystem::path& path, std::string_view what, int code);

}  // namespace dynslice
