// Scores the layers of a model with the library: score_layers MODEL TEXT_FILE
//
// MODEL is a checkpoint folder or a .gguf file. A high Layer Redundancy (the mean cosine of a layer's input and
// output) says that the layer changes little, and may lose more.
#include <dynslice/checkpoint/open_checkpoint.h>
#include <dynslice/score/score.h>
#include <dynslice/support/error.h>
#include <dynslice/text/datasets/dataset.h>
#include <dynslice/text/tokenizer/tokenizer.h>

#include <cstdio>
#include <cstdlib>

namespace {

void score(const char* model, const char* file) {
  const auto checkpoint = dynslice::open_checkpoint(model);
  const auto tokenizer = dynslice::load_tokenizer(model);
  const auto text = dynslice::load_text(file, dynslice::TextUse::kCalibration, {}, dynslice::no_progress());

  // Eight windows of 256 tokens: enough to see the pattern, far too few for a paper.
  const auto windows = dynslice::cut_windows(tokenizer->encode(text.text), {.seqlen = 256, .samples = 8});
  const auto compute = dynslice::resolve_compute("auto", "auto");
  const dynslice::LayerWalk walk(*checkpoint, compute, windows.length, dynslice::no_progress());
  const auto scores = dynslice::score_layers(walk, windows, {.metric = dynslice::parse_metric("lr")});

  for (size_t layer = 0; layer < scores.values.size(); ++layer) {
    std::printf("layer %zu: %.6f\n", layer, scores.values[layer]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s MODEL TEXT_FILE\n", argv[0]);
    return 2;
  }
  ::setenv("OMP_WAIT_POLICY", "passive", /*overwrite=*/0);
  try {
    score(argv[1], argv[2]);
    return 0;
  } catch (const dynslice::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return error.exit_code();
  }
}
