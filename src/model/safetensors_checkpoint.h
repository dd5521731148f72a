// A Hugging Face folder: config.json and one or many safetensors files.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "dynslice/model/checkpoint.h"
#include "model/safetensors_file.h"

namespace dynslice {

class SafetensorsCheckpoint : public Checkpoint {
 public:
  // Reads config.json and either model.safetensors or model.safetensors.index.json with the files it names.
  explicit SafetensorsCheckpoint(const std::filesystem::path& folder);

  std::vector<TensorInfo> tensors() const override;
  const TensorInfo* find(const std::string& name) const override;
  std::vector<std::filesystem::path> files() const override;
  at::ScalarType storage_dtype() const override;

 protected:
  std::filesystem::path file_of(const TensorInfo& info) const override;
  at::Tensor read_rows(const TensorInfo& info, int64_t begin, int64_t end, at::ScalarType dtype) const override;

 private:
  struct Location {
    TensorInfo info;
    size_t file = 0;  // index into files_
  };

  void add_tensor(const std::string& name, size_t file);
  void open_single(const std::filesystem::path& file);
  void open_sharded(const std::filesystem::path& index);
  const Location& location_of(const TensorInfo& info) const { return tensors_.at(info.name); }

  std::vector<SafetensorsFile> files_;
  std::map<std::string, Location> tensors_;
  std::vector<std::filesystem::path> other_files_;  // config.json, index
};

}  // namespace dynslice
