#include "dynslice/support/hash.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>

#include "dynslice/support/error.h"
#include "dynslice/support/system_error.h"

namespace dynslice {
namespace {

// One running digest. `update` may be called any number of times before `hex`.
class Digest {
 public:
  explicit Digest(const EVP_MD* algorithm) : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    if (context_ == nullptr || EVP_DigestInit_ex(context_.get(), algorithm, nullptr) != 1) {
      throw_error(ErrorKind::kOutOfResources, "OpenSSL cannot start a digest");
    }
  }
  void update(std::string_view bytes) { EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()); }
  std::string hex() {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int length = 0;
    EVP_DigestFinal_ex(context_.get(), digest.data(), &length);
    static constexpr std::string_view kDigits = "0123456789abcdef";
    std::string text;
    for (unsigned int i = 0; i < length; ++i) {
      text += kDigits[digest[i] >> 4];
      text += kDigits[digest[i] & 15];
    }
    return text;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

void update_from_file(Digest& digest, const std::filesystem::path& path, const std::function<void(int64_t)>& on_read) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw_system_error(path, "cannot be opened", errno);
  std::string block(size_t{1} << 20, '\0');
  while (file) {
    file.read(block.data(), static_cast<std::streamsize>(block.size()));
    digest.update(std::string_view(block.data(), static_cast<size_t>(file.gcount())));
    if (on_read) on_read(file.gcount());
  }
  if (file.bad()) throw_error(ErrorKind::kBadInput, path.string(), ": cannot be read");
}

}  // namespace

std::string sha256(std::string_view content) {
  Digest digest(EVP_sha256());
  digest.update(content);
  return digest.hex();
}

std::string sha256_of_file(const std::filesystem::path& path, const std::function<void(int64_t)>& on_read) {
  Digest digest(EVP_sha256());
  update_from_file(digest, path, on_read);
  return digest.hex();
}

std::string git_blob_sha1_of_file(const std::filesystem::path& path) {
  Digest digest(EVP_sha1());
  std::string header = "blob " + std::to_string(std::filesystem::file_size(path));
  header += '\0';
  digest.update(header);
  update_from_file(digest, path, {});
  return digest.hex();
}

namespace {

// XXH64 as its specification has it: four lanes over stripes of 32 bytes, then the rest, then an avalanche.
constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87, kPrime2 = 0xC2B2AE3D27D4EB4F, kPrime3 = 0x165667B19E3779F9,
                   kPrime4 = 0x85EBCA77C2B2AE63, kPrime5 = 0x27D4EB2F165667C5;

uint64_t read64(const unsigned char* bytes) {
  uint64_t value = 0;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

uint64_t lane_round(uint64_t lane, uint64_t input) { return std::rotl(lane + input * kPrime2, 31) * kPrime1; }

void add_stripe(std::array<uint64_t, 4>& lanes, const unsigned char* bytes) {
  for (size_t i = 0; i < 4; ++i) lanes[i] = lane_round(lanes[i], read64(bytes + 8 * i));
}

}  // namespace

void Checksum::update(const void* bytes, size_t length) {
  const auto* next = static_cast<const unsigned char*>(bytes);
  const size_t held = length_ % rest_.size();
  length_ += length;
  if (held + length < rest_.size()) {
    std::copy_n(next, length, rest_.begin() + static_cast<ptrdiff_t>(held));
    return;
  }
  if (held > 0) {
    const size_t missing = rest_.size() - held;
    std::copy_n(next, missing, rest_.begin() + static_cast<ptrdiff_t>(held));
    add_stripe(lanes_, rest_.data());
    next += missing;
    length -= missing;
  }
  for (; length >= rest_.size(); next += rest_.size(), length -= rest_.size()) add_stripe(lanes_, next);
  std::copy_n(next, length, rest_.begin());
}

uint64_t Checksum::value() const {
  uint64_t hash = kPrime5;
  if (length_ >= rest_.size()) {
    hash = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) + std::rotl(lanes_[3], 18);
    for (const uint64_t lane : lanes_) hash = (hash ^ lane_round(0, lane)) * kPrime1 + kPrime4;
  }
  hash += length_;
  const unsigned char* next = rest_.data();
  size_t left = length_ % rest_.size();
  for (; left >= 8; next += 8, left -= 8) hash = std::rotl(hash ^ lane_round(0, read64(next)), 27) * kPrime1 + kPrime4;
  if (left >= 4) {
    uint32_t value = 0;
    std::memcpy(&value, next, sizeof value);
    hash = std::rotl(hash ^ (value * kPrime1), 23) * kPrime2 + kPrime3;
    next += 4;
    left -= 4;
  }
  for (; left > 0; ++next, --left) hash = std::rotl(hash ^ (*next * kPrime5), 11) * kPrime1;
  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

std::string Checksum::hex() const {
  std::array<char, 17> text{};
  std::snprintf(text.data(), text.size(), "%016llx", static_cast<unsigned long long>(value()));
  return text.data();
}

}  // namespace dynslice
