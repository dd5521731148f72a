// Writes what the library reads from a model as 32-bit safetensors, for comparison with other programs.
//   dequantize_main tensors FILE.gguf OUT                      every tensor under its GGUF name
//   dequantize_main checkpoint MODEL OUT [MAX_SHARD_BYTES]     every tensor as Hugging Face has it, with config.json
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>

#include "aten.h"
#include "dynslice/checkpoint/checkpoint_writer.h"
#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/formats/gguf/ggml_dequantize.h"
#include "dynslice/formats/gguf/gguf_file.h"
#include "dynslice/model/checkpoint.h"
#include "dynslice/support/error.h"

namespace {

using namespace dynslice;

constexpr uint64_t kOneShard = uint64_t{1} << 62;

void dump_tensors(const std::filesystem::path& path, const std::filesystem::path& out) {
  const GgufFile file(path);
  std::vector<OutputTensor> announced;
  for (const GgufTensor& tensor : file.tensors()) announced.push_back({tensor.name, tensor.shape, at::kFloat});
  CheckpointWriter writer(out, announced, false, kOneShard);
  for (const GgufTensor& tensor : file.tensors()) {
    const at::Tensor values = at::empty(tensor.shape, at::kFloat);
    dequantize(tensor.type, file.bytes(tensor), {values.data_ptr<float>(), static_cast<size_t>(values.numel())});
    writer.write(tensor.name, values);
  }
  writer.commit();
}

void dump_checkpoint(const std::filesystem::path& path, const std::filesystem::path& out, uint64_t max_shard_bytes) {
  const auto checkpoint = open_checkpoint(path);
  std::vector<OutputTensor> announced;
  for (const TensorInfo& info : checkpoint->tensors())
    announced.push_back({info.name, info.shape, at::kFloat, stored_tensor(checkpoint->config(), info.name)});
  std::ranges::sort(announced, {},
                    [](const OutputTensor& one) { return std::pair(one.stored_name(), one.stored.first_row); });
  CheckpointWriter writer(out, announced, false, max_shard_bytes);
  for (const OutputTensor& tensor : announced)
    writer.write(tensor.name, checkpoint->load(tensor.name, tensor.shape, at::kFloat));
  writer.write_text("config.json", write_config(checkpoint->config(), "float32").dump(2) + "\n");
  writer.commit();
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (argc < 4 || argc > 5 || (mode != "tensors" && mode != "checkpoint")) {
    std::cerr << "usage: dequantize_main tensors|checkpoint MODEL OUT [MAX_SHARD_BYTES]\n";
    return 2;
  }
  try {
    if (mode == "tensors") {
      dump_tensors(argv[2], argv[3]);
    } else {
      dump_checkpoint(argv[2], argv[3], argc == 5 ? std::strtoull(argv[4], nullptr, 10) : kOneShard);
    }
  } catch (const Error& error) {
    std::cerr << "error: " << error.what() << "\n";
    return error.exit_code();
  } catch (const std::exception& error) {
    std::cerr << "internal error: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
