// Writes the logits of a checkpoint for one window of token ids, for comparison with transformers.
// Usage: logits_main CHECKPOINT IDS_FILE OUT_FILE   (int32 ids in; float32 logits [tokens, vocab] out, both raw)
#include <cstdint>
#include <fstream>
#include <iostream>

#include "aten.h"
#include "dynslice/checkpoint/open_checkpoint.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/walk/head.h"

namespace {

dynslice::TokenWindows read_ids(const char* path) {
  const std::string bytes = dynslice::read_file(path);
  const auto* first = reinterpret_cast<const int32_t*>(bytes.data());
  const auto count = static_cast<int64_t>(bytes.size() / sizeof(int32_t));
  return {std::vector<int32_t>(first, first + count), 1, count};
}

void write_logits(const char* checkpoint_path, const char* ids_path, const char* out_path) {
  const auto checkpoint = dynslice::open_checkpoint(checkpoint_path);
  const dynslice::TokenWindows window = read_ids(ids_path);
  const dynslice::LayerWalk walk(*checkpoint, {}, window.length, dynslice::no_progress());
  dynslice::ResidualStream stream = walk.embed(window);
  dynslice::run_dense(walk, "Layers", stream);
  const at::Tensor logits = dynslice::logits(dynslice::load_head(walk), stream.chunks.front()[0]).contiguous();
  std::ofstream(out_path, std::ios::binary)
      .write(static_cast<const char*>(logits.const_data_ptr()), static_cast<std::streamsize>(logits.nbytes()));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: logits_main CHECKPOINT IDS_FILE OUT_FILE\n";
    return 2;
  }
  try {
    write_logits(argv[1], argv[2], argv[3]);
    return 0;
  } catch (const dynslice::Error& error) {
    std::cerr << error.what() << '\n';
    return error.exit_code();
  }
}
