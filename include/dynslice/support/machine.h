// What the machine has left for this process: memory, with a container's limits, and disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace dynslice {

// Bytes that can be allocated without swapping or being killed: the kernel's MemAvailable, or what the memory limits
// of the process's cgroups (version 1 and 2, and all their parents) leave when that is less. Page cache counts as
// available. `root` is where /proc and /sys are looked for.
[[nodiscard]] uint64_t available_memory_bytes(const std::filesystem::path& root = "/");

// Resident memory of this process now, and the most it had so far.
[[nodiscard]] uint64_t current_rss_bytes();
[[nodiscard]] uint64_t peak_rss_bytes();
// Has the peak counted from now on; without effect where the kernel does not allow it.
void reset_peak_rss();
// Returns to the system what was freed and kept for later. Pages of it that are needed again are cleared again, at
// about 2 GB a second.
void return_freed_memory();

// Bytes that a user may still write where `path` is or would be created; UINT64_MAX when nobody can tell.
[[nodiscard]] uint64_t available_disk_bytes(const std::filesystem::path& path);

// "2GB", "512MB", "1.5 GiB", "1000000" → bytes. K, M, G and T are powers of 1000, Ki, Mi, Gi and Ti of 1024; the B may
// be left out. Throws kUsage, naming `option`, for anything else and for 0.
[[nodiscard]] uint64_t parse_byte_size(const std::string& option, const std::string& text);

}  // namespace dynslice
