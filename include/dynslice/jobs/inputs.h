// What every verb begins with: the model, the text, the compute device, and a record of all of it.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "dynslice/jobs/requests.h"
#include "dynslice/model/checkpoint.h"
#include "dynslice/support/json.h"
#include "dynslice/support/progress.h"
#include "dynslice/text/datasets/dataset.h"
#include "dynslice/walk/layer_walk.h"

namespace dynslice {

// The local path of MODEL: a path, a hub id (downloaded when it is not in the cache), or the default model.
[[nodiscard]] std::filesystem::path resolve_model(const std::string& model, ProgressSink& progress);

// Fails before the work when a file to be written has no folder to lie in.
void check_output_file(const std::filesystem::path& file);

// Opens the model and sets the number of threads.
[[nodiscard]] std::unique_ptr<Checkpoint> open_model(const CommonOptions& options, ProgressSink& progress);
// Another one beside it, MODEL being `model`.
[[nodiscard]] std::unique_ptr<Checkpoint> open_model(const CommonOptions& options, const std::string& model,
                                                     ProgressSink& progress);

struct LoadedText {
  TextSource source;
  std::vector<int32_t> stream;  // all token ids of the text
  WindowOptions cut;            // as resolved: seqlen and range filled in
  TokenWindows windows;
  std::optional<int32_t> bos_id;  // when the tokenizer adds it
};

// Loads, tokenizes and cuts the text. Checks that tokenizer and model agree. `tokenizer`, when it is not null, gets
// the model's, which is let go otherwise.
[[nodiscard]] LoadedText load_windows(const TextOptions& options, TextUse use, const CommonOptions& common,
                                      const Checkpoint& checkpoint, ProgressSink& progress,
                                      std::unique_ptr<Tokenizer>* tokenizer = nullptr);

// Name, file, hash, range, windows: what makes a text reproducible.
[[nodiscard]] OrderedJson describe(const LoadedText& text, const TextOptions& options);

// Program and library versions, device, dtype, threads, command line, model path, and the recipe that it is part of.
[[nodiscard]] OrderedJson describe_run(const CommonOptions& common, const ComputeOptions& compute,
                                       const Checkpoint& checkpoint);

}  // namespace dynslice
