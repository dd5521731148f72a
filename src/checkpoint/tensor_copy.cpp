#include "dynslice/checkpoint/tensor_copy.h"

#include <algorithm>
#include <string_view>

namespace dynslice {
namespace {

constexpr int64_t kBlockValues = int64_t{1} << 22;

}  // namespace

void copy_tensor(const Checkpoint& source, const std::string& name, const OutputTensor& tensor,
                 CheckpointWriter& writer, ProgressTask& task) {
  if (tensor.shape.size() != 2) {
    // In full precision: a norm's weights may be stored without the one that they have with us.
    writer.write(tensor.name, source.load(name, tensor.shape, at::kFloat));
    task.advance(tensor.shape.front());
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
