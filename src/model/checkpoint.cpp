#include "dynslice/model/checkpoint.h"

#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/check.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/kernels.h"

namespace dynslice {
namespace {

void check_values(const std::filesystem::path& file, const TensorInfo& info, const at::Tensor& values) {
  if (kernels::all_finite(values)) return;
  throw_error(ErrorKind::kBadInput, file.string(), ": tensor \"", info.name, "\" (", info.dtype,
              ") holds NaN or Inf once it is ", c10::toString(values.scalar_type()),
              "; the checkpoint is damaged, or its values need another dtype");
}

}  // namespace

void check_tensor_shape(const std::filesystem::path& file, const TensorInfo& info,
                        const std::vector<int64_t>& expected) {
  if (info.shape == expected) return;
  throw_error(ErrorKind::kBadInput, file.string(), ": tensor \"", info.name, "\" has shape ",
              describe_shape(info.shape), "; the configuration asks for ", describe_shape(expected));
}

void throw_missing_tensor(const Checkpoint& checkpoint, const std::string& name) {
  throw_error(ErrorKind::kBadInput, checkpoint.path().string(), ": tensor \"",
              stored_tensor(checkpoint.config(), name).name,
              "\" is missing; the checkpoint is incomplete or its configuration belongs to another model");
}

at::Tensor Checkpoint::load(const std::string& name, const std::vector<int64_t>& expected_shape,
                            at::ScalarType dtype) const {
  return load_rows(name, expected_shape, 0, expected_shape.empty() ? 1 : expected_shape.front(), dtype);
}

at::Tensor Checkpoint::load_rows(const std::string& name, const std::vector<int64_t>& expected_shape, int64_t begin,
                                 int64_t end, at::ScalarType dtype) const {
  const int64_t rows = expected_shape.empty() ? 1 : expected_shape.front();
  DYNSLICE_CHECK(0 <= begin && begin <= end && end <= rows, "load_rows: rows outside of tensor ", name);
  const TensorInfo* info = find(name);
  if (info == nullptr) throw_missing_tensor(*this, name);
  const std::filesystem::path file = file_of(*info);
  check_tensor_shape(file, *info, expected_shape);
  const at::Tensor values = read_rows(*info, begin, end, dtype);
  check_values(file, *info, values);
  return values;
}

uint64_t stored_bytes(const Checkpoint& checkpoint) {
  uint64_t bytes = 0;
  for (const TensorInfo& tensor : checkpoint.tensors()) bytes += tensor.bytes;
  return bytes;
}

}  // namespace dynslice
