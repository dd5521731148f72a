#include "dynslice/quantize/gguf_blocks.h"

#include <cstring>

#include "aten.h"
#include "dynslice/formats/gguf/ggml_quantize.h"
#include "dynslice/formats/safetensors/safetensors_file.h"
#include "dynslice/model/decoder_layer.h"
#include "dynslice/support/error.h"

namespace dynslice {

QuantFormat block_format(GgmlType wanted, int bits, int64_t columns) {
  QuantFormat format;
  format.bits = bits;
  format.block_type = type_for_rows(wanted, columns);
  if (!is_quantized(*format.block_type)) {
    throw_error(ErrorKind::kUsage, "rows of ", columns,
                " weights are no multiple of 32, which ggml's blocks of codes need: no GGUF of this model");
  }
  return format;
}

std::vector<OutputTensor> block_tensors(const ModelConfig& config, const FormatOf& format_of) {
  std::vector<OutputTensor> tensors;
  for (int64_t layer = 0; layer < config.num_layers(); ++layer) {
    for (const LinearShape& matrix : linear_shapes(config, layer)) {
      const GgmlFormat& block = ggml_format(*format_of(layer, matrix.columns).block_type);
      tensors.push_back({layer_tensor_name(layer, matrix.module + ".weight"),
                         {matrix.rows, matrix.columns / block.values * block.bytes},
                         at::kByte});
    }
  }
  return tensors;
}

class BlockFile::Impl {
 public:
  explicit Impl(const std::filesystem::path& folder) : file_(folder / "model.safetensors") {}
  const SafetensorsFile& file() const { return file_; }

 private:
  SafetensorsFile file_;
};

BlockFile::BlockFile(const std::filesystem::path& folder) : impl_(std::make_unique<Impl>(folder)) {}
BlockFile::~BlockFile() = default;

bool BlockFile::contains(const std::string& name) const { return impl_->file().entries().contains(name); }

at::Tensor BlockFile::rows(const std::string& name, int64_t begin, int64_t end) const {
  const SafetensorsFile& file = impl_->file();
  const SafetensorsEntry& entry = file.entries().at(name);
  if (entry.dtype != "U8" || entry.shape.size() != 2 || begin < 0 || begin > end || end > entry.shape.front()) {
    throw_error(ErrorKind::kBadInput, file.file().path().string(), ": tensor \"", name,
                "\" is not a matrix of blocks with ", end, " rows or more; quantize again with --force");
  }
  const int64_t row_bytes = entry.shape.back();
  at::Tensor values = at::empty({end - begin, row_bytes}, at::kByte);
  const auto first = static_cast<uint64_t>(begin * row_bytes);
  std::memcpy(values.mutable_data_ptr<uint8_t>(), file.bytes(entry).data() + first, values.nbytes());
  file.file().release(entry.offset + first, values.nbytes());
  return values;
}

}  // namespace dynslice
