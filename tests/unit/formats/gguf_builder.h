// Builds small GGUF files byte by byte, right or wrong, without any of the library's code.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace dynslice::testing {

template <typename T>
void append(std::string& bytes, T value) {
  char raw[sizeof(T)];
  std::memcpy(raw, &value, sizeof(T));
  bytes.append(raw, sizeof(T));
}

inline void append_string(std::string& bytes, const std::string& text) {
  append<uint64_t>(bytes, text.size());
  bytes += text;
}

class GgufBuilder {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;

  GgufBuilder& number(const std::string& key, uint32_t value) { return add<uint32_t>(key, 4, value); }
  GgufBuilder& real(const std::string& key, float value) { return add<float>(key, 6, value); }
  GgufBuilder& boolean(const std::string& key, uint8_t value) { return add<uint8_t>(key, 7, value); }
  GgufBuilder& wide(const std::string& key, uint64_t value) { return add<uint64_t>(key, 10, value); }
  GgufBuilder& text(const std::string& key, const std::string& value) {
    start(key, 8);
    append_string(metadata_, value);
    return *this;
  }
  GgufBuilder& texts(const std::string& key, const std::vector<std::string>& values) {
    start(key, 9);
    append<uint32_t>(metadata_, 8);
    append<uint64_t>(metadata_, values.size());
    for (const std::string& value : values) append_string(metadata_, value);
    return *this;
  }
  // Any value, encoded by the caller.
  GgufBuilder& raw(const std::string& key, uint32_t type, const std::string& encoded) {
    start(key, type);
    metadata_ += encoded;
    return *this;
  }

  // `shape` outermost first, as PyTorch has it.
  GgufBuilder& tensor(const std::string& name, std::vector<uint64_t> shape, uint32_t type, const std::string& data) {
    return tensor_at(name, std::move(shape), type, data, data_.size());
  }
  // The same with a chosen offset in the directory.
  GgufBuilder& tensor_at(const std::string& name, std::vector<uint64_t> shape, uint32_t type, const std::string& data,
                         uint64_t offset) {
    append_string(directory_, name);
    append<uint32_t>(directory_, static_cast<uint32_t>(shape.size()));
    for (size_t i = shape.size(); i-- > 0;) append<uint64_t>(directory_, shape[i]);
    append<uint32_t>(directory_, type);
    append<uint64_t>(directory_, offset);
    data_ += data;
    data_.resize((data_.size() + alignment - 1) / alignment * alignment, '\0');
    ++tensors_;
    return *this;
  }
  GgufBuilder& floats(const std::string& name, std::vector<uint64_t> shape, const std::vector<float>& values) {
    return tensor(name, std::move(shape), 0,
                  std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)));
  }

  std::string bytes() const {
    std::string file = "GGUF";
    append<uint32_t>(file, version);
    append<uint64_t>(file, tensors_);
    append<uint64_t>(file, keys_);
    file += metadata_ + directory_;
    file.resize((file.size() + alignment - 1) / alignment * alignment, '\0');
    return file + data_;
  }

 private:
  void start(const std::string& key, uint32_t type) {
    append_string(metadata_, key);
    append<uint32_t>(metadata_, type);
    ++keys_;
  }
  template <typename T>
  GgufBuilder& add(const std::string& key, uint32_t type, T value) {
    start(key, type);
    append<T>(metadata_, value);
    return *this;
  }

  std::string metadata_, directory_, data_;
  uint64_t keys_ = 0, tensors_ = 0;
};

}  // namespace dynslice::testing
