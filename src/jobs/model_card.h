// README.md of an output folder: a model card, whose head is what the Hugging Face Hub reads.
#pragma once

#include <filesystem>
#include <string>

#include "dynslice/checkpoint/checkpoint_writer.h"
#include "dynslice/model/checkpoint.h"
#include "dynslice/model/config.h"
#include "dynslice/support/json.h"

namespace dynslice {

// What lies in the folder, in the Hub's words of how it relates to its base model.
enum class CardKind { kFinetune, kQuantized, kAdapter };

struct CardSubject {
  CardKind kind = CardKind::kFinetune;
  std::filesystem::path output;  // the folder
  const Checkpoint& source;
  const ModelConfig& config;  // of what was written; of an adapter, the source's
};

// The card of what `record`, a dynslice.json, tells of. Base model and licence come from the hub id that was asked for,
// from the source's own card, and from its GGUF metadata.
[[nodiscard]] std::string model_card(const CardSubject& subject, const OrderedJson& record);

// Writes dynslice.json and README.md, and copies the source's licence files.
void write_record(const CardSubject& subject, const OrderedJson& record, CheckpointWriter& writer);

}  // namespace dynslice
