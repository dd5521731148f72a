// Recovery of a model that was made smaller: low-rank updates of its linears (LoRA, arXiv 2106.09685), trained on the
// next token, then merged into the weights or kept as an adapter.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dynslice/checkpoint/checkpoint_writer.h"
#include "dynslice/heal/lora_options.h"
#include "dynslice/model/checkpoint.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/train/objectives.h"
#include "dynslice/walk/journal.h"
#include "dynslice/walk/resident_model.h"

namespace dynslice {

// Updates of every layer that change nothing yet: a is random (uniform within 1/sqrt(in), as PEFT has it), b zero.
// Layers without a module (an MLP alone has no attention) go without its update. Throws kUsage, listing the known
// ones, for a module that does not exist, and when no layer has any of them.
[[nodiscard]] std::vector<LayerUpdates> make_lora(const ModelConfig& config, const LoraOptions& options,
                                                  at::Device device);

// The last words of the names that the modules with updates have in transformers' model of `config`.
[[nodiscard]] std::vector<std::string> updated_modules(const ModelConfig& config, const LoraOptions& options);

// Parameters of the updates of every layer.
[[nodiscard]] std::vector<int64_t> lora_parameters(const ModelConfig& config, const LoraOptions& options);

struct LoraResult {
  std::vector<LayerUpdates> updates;
  TrainingResult training;
};

// Trains on `training`, next token by next token. `recomputes`: see TrainableLayers. Throws as train does, and
// kBadInput for token ids that the model does not have.
[[nodiscard]] LoraResult heal_by_lora(const ResidentModel& model, const std::vector<TrainingExample>& training,
                                      const std::vector<TrainingExample>& held_out, const LoraOptions& lora,
                                      const TrainingOptions& options, bool recomputes, ProgressSink& progress,
                                      const JournalPhase& journal = {});

// Writes all tensors of the source, its linears with the updates added, a layer in memory at a time. `writer` has
// announced checkpoint_tensors(source.config(), dtype).
void write_healed(const Checkpoint& source, const std::vector<LayerUpdates>& updates, at::ScalarType dtype,
                  CheckpointWriter& writer, ProgressSink& progress);

// The adapter in PEFT's format: its tensors, for a writer with the stem "adapter_model", and adapter_config.json.
// Modules have the names that transformers' model of `config` has; updates of linears that are one there are one, too,
// of a rank of all of them together.
[[nodiscard]] std::vector<OutputTensor> adapter_tensors(const ModelConfig& config,
                                                        const std::vector<LayerUpdates>& updates);
void write_adapter(const ModelConfig& config, const std::vector<LayerUpdates>& updates, CheckpointWriter& writer);
[[nodiscard]] OrderedJson adapter_config(const ModelConfig& config, const LoraOptions& options,
                                         const std::string& base_model);

}  // namespace dynslice
