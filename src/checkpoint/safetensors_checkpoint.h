// A Hugging Face folder: config.json and one or many safetensors files, whose linears may be packed integers in
// compressed-tensors' format "pack-quantized".
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "dynslice/formats/safetensors/packed_weights.h"
#include "dynslice/formats/safetensors/safetensors_file.h"
#include "dynslice/model/checkpoint.h"

namespace dynslice {

class SafetensorsCheckpoint : public Checkpoint {
 public:
  // Reads config.json and either model.safetensors or model.safetensors.index.json with the files it names.
  // Of a packed linear X, the tensors X.weight_packed, X.weight_scale, X.weight_zero_point and X.weight_shape become
  // one tensor X.weight, which is dequantized as it is read. Throws kBadInput naming file and tensor where they do not
  // fit each other or what config.json says of them.
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
    std::string stored_name;
    int64_t first_row = 0;  // of the stored tensor
  };

  struct PackedLocation {
    Location codes, scales;
    std::optional<Location> zeros;
    PackedMatrix matrix;
  };

  void recognise_wrapper(const std::vector<std::string>& names);
  void add_tensor(const std::string& name, size_t file);
  [[nodiscard]] std::vector<Location> parts_of(const Location& whole, const std::vector<std::string>& names) const;
  void open_single(const std::filesystem::path& file);
  void open_sharded(const std::filesystem::path& index);
  // From here on in safetensors_packed.cpp.
  void gather_packed();
  void add_packed(const std::string& module);
  std::optional<Location> take(const std::string& name);
  Location take_part(const Location& codes, const std::string& module, const std::string& part);
  std::vector<int64_t> read_shape(const Location& location) const;
  void place_codes(const PackingGroup& group, const std::string& module, PackedLocation& packed);
  void place_zeros(const PackingGroup& group, const std::string& module, PackedLocation& packed);
  [[noreturn]] void refuse(const Location& location, const std::string& what) const;
  at::Tensor read_packed(const PackedLocation& packed, int64_t begin, int64_t end, at::ScalarType dtype) const;
  // Back in safetensors_checkpoint.cpp.
  at::Tensor read_plain(const Location& location, int64_t begin, int64_t end, at::ScalarType dtype) const;
  std::filesystem::path file_of(const Location& location) const;
  const Location& location_of(const TensorInfo& info) const { return tensors_.at(info.name); }

  std::vector<SafetensorsFile> files_;
  std::map<std::string, Location> tensors_;
  std::map<std::string, PackedLocation> packed_;    // by the name of the weight, which tensors_ has too
  std::vector<std::filesystem::path> other_files_;  // config.json, index
};

}  // namespace dynslice
