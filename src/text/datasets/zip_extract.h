// Takes known members out of a zip archive that nobody vouches for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace dynslice {

// The content of the member of exactly that name. Nothing else of the archive is looked at, so no name in it
// can lead out of a folder. Throws kBadInput when the archive or the member is broken, missing, or larger than
// `max_bytes` once unpacked.
std::string read_zip_member(const std::filesystem::path& archive, const std::string& member, uint64_t max_bytes);

}  // namespace dynslice
