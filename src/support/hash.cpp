#include "dynslice/support/hash.h"

#include <openssl/evp.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <new>

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

Checksum::Checksum() : state_(XXH64_createState()) {
  if (state_ == nullptr) throw std::bad_alloc();
  XXH64_reset(state_.get(), /*seed=*/0);
}

void Checksum::Deleter::operator()(XXH64_state_s* state) const { XXH64_freeState(state); }

void Checksum::update(const void* bytes, size_t length) {
  if (length > 0) XXH64_update(state_.get(), bytes, length);
}

uint64_t Checksum::value() const { return XXH64_digest(state_.get()); }

std::string Checksum::hex() const {
  std::array<char, 17> text{};
  std::snprintf(text.data(), text.size(), "%016llx", static_cast<unsigned long long>(value()));
  return text.data();
}

}  // namespace dynslice
