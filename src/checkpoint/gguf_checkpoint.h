// A GGUF file under Hugging Face's names and shapes; blocks are decoded when a tensor is loaded.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "dynslice/formats/gguf/gguf_file.h"
#include "dynslice/model/checkpoint.h"

namespace dynslice {

class GgufCheckpoint : public Checkpoint {
 public:
  explicit GgufCheckpoint(const std::filesystem::path& file);

  std::vector<TensorInfo> tensors() const override;
  const TensorInfo* find(const std::string& name) const override;
  std::vector<std::filesystem::path> files() const override { return {path_}; }
  at::ScalarType storage_dtype() const override;

 protected:
  std::filesystem::path file_of(const TensorInfo&) const override { return path_; }
  at::Tensor read_rows(const TensorInfo& info, int64_t begin, int64_t end, at::ScalarType dtype) const override;

 private:
  struct Location {
    TensorInfo info;
    size_t tensor = 0;  // index into file_.tensors()
    // Heads whose rows the file keeps in the order of interleaved rotary embeddings; 0 when rows are as they should.
    int64_t interleaved_heads = 0;
    int64_t first_row = 0;  // of the file's tensor
    // Of gated delta nets: the file's row for each of ours, its part of a row for each of ours, and whether it holds
    // -exp(x) of x.
    std::vector<int64_t> rows = {}, column_parts = {};
    int64_t head_width = 0;  // of interleaved ones
    bool is_rate = false;
  };

  void add_tensor(size_t index, const std::string& name);
  void add_fused(size_t index, const std::vector<std::string>& names);
  int64_t row_in_file(const Location& location, int64_t row) const;
  at::Tensor read_vector(const Location& location, int64_t begin, int64_t end, at::ScalarType dtype) const;
  at::Tensor read_matrix(const Location& location, int64_t begin, int64_t end, at::ScalarType dtype) const;

  GgufFile file_;
  std::map<std::string, Location> tensors_;
};

// Hugging Face's names of the rows of a GGUF tensor, in order; none when it has none (rope_freqs.weight).
std::vector<std::string> hugging_face_names(const Architecture& architecture, const std::string& gguf_name);
// The other way round. Throws std::logic_error for a name that GGUF has no place for.
std::string gguf_name(const Architecture& architecture, const std::string& hugging_face_name);

}  // namespace dynslice
