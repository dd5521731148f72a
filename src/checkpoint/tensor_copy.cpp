#include "dynslice/checkpoint/tensor_copy.h"

#include <algorithm>
#include <set>
#include <string_view>

#include "dynslice/support/error.h"
#include "dynslice/support/json.h"
#include "dynslice/tensor/dtype.h"

namespace dynslice {
namespace {

constexpr int64_t kBlockValues = int64_t{1} << 22;

}  // namespace

void copy_tensor(const Checkpoint& source, const std::string& name, const OutputTensor& tensor,
                 CheckpointWriter& writer, ProgressTask& task) {
  if (tensor.shape.size() != 2) {
    // In full precision: a norm's weights may be stored without the one that they have with us.
    writer.write(tensor.name, source.load(name, tensor.shape, at::kFloat));
    task.advance(count_values(tensor));
    return;
  }
  const int64_t rows = tensor.shape[0], columns = tensor.shape[1];
  const int64_t step = std::max<int64_t>(1, kBlockValues / columns);
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t end = std::min(rows, begin + step);
    writer.write_rows(tensor.name, begin, source.load_rows(name, tensor.shape, begin, end, tensor.dtype));
    task.advance((end - begin) * columns);
  }
}

std::vector<OutputTensor> other_tensors(const Checkpoint& source) {
  const ModelConfig& config = source.config();
  if (!config.is_wrapped()) return {};
  std::set<std::string> ours;
  for (const OutputTensor& tensor : checkpoint_tensors(config, at::kFloat)) ours.insert(tensor.name);
  std::vector<OutputTensor> others;
  for (const TensorInfo& info : source.tensors()) {
    if (ours.contains(info.name)) continue;
    const auto dtype = weight_dtype_of_file(info.dtype);
    if (!dtype) {
      throw_error(ErrorKind::kBadInput, source.path().string(), ": tensor \"", info.name, "\" has dtype ",
                  Json(info.dtype).dump(-1, ' ', true), "; copied are F32, F16 and BF16");
    }
    others.push_back({info.name, info.shape, *dtype});
  }
  return others;
}

void copy_tensors(const Checkpoint& source, const std::vector<OutputTensor>& tensors,
                  const std::function<bool(const std::string& name)>& stays, const std::string& title,
                  CheckpointWriter& writer, ProgressSink& progress) {
  std::vector<OutputTensor> rest;
  int64_t values = 0;
  for (const OutputTensor& tensor : tensors) {
    if (!stays(tensor.name)) continue;
    rest.push_back(tensor);
    values += count_values(tensor);
  }
  ProgressTask task(progress, title, values, "parameters");
  for (const OutputTensor& tensor : rest) copy_tensor(source, tensor.name, tensor, writer, task);
}

}  // namespace dynslice
