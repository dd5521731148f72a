// The folder that a checkpoint is written to: its name, what may not be overwritten, and the record of where it came
// from. What `slice` and `depth` share.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "dynslice/checkpoint/checkpoint_writer.h"
#include "dynslice/jobs/inputs.h"
#include "dynslice/jobs/outcome.h"
#include "dynslice/jobs/prepare.h"
#include "dynslice/jobs/requests.h"

namespace dynslice {

// What the model is called, from its path or hub id.
[[nodiscard]] std::string model_name(const CommonOptions& common, const Checkpoint& checkpoint);

// `wanted`, or ./NAME-SUFFIX. Fails, before hours of work, when the folder exists and may not be replaced, or holds the
// model that is read.
[[nodiscard]] std::filesystem::path checkpoint_folder(const std::string& wanted, const CommonOptions& common,
                                                      const Checkpoint& checkpoint, const std::string& suffix);

// Throws kUsage when `out` holds that model: --force must never remove what is read.
void check_apart(const std::filesystem::path& out, const Checkpoint& checkpoint);

// Throws kUsage when `out` exists and not `may_exist`.
void check_output(const std::filesystem::path& out, bool may_exist);

// dynslice.json up to what the method adds: run, hashes of the source, and the source's own record if it has one.
[[nodiscard]] OrderedJson describe_checkpoint(const std::string& method, const OrderedJson& run_description,
                                              const Checkpoint& checkpoint, ProgressSink& progress);

// All tensors of the checkpoint to be: those of a model with `config`, and what stood beside the source's language
// model, where that still fits.
[[nodiscard]] std::vector<OutputTensor> output_tensors(const Checkpoint& source, const ModelConfig& config,
                                                       at::ScalarType dtype);

// What stands beside the weights that a method writes: other parts than the language model, tokenizer, config.json
// (with a "quantization_config" unless that is null), and the modeling code of shapes that need it.
void write_companions(const Checkpoint& source, const ModelConfig& config, at::ScalarType dtype,
                      CheckpointWriter& writer, ProgressSink& progress, const OrderedJson& quantization = nullptr);

// With --resume: what an earlier run of this very command wrote, if it finished. Otherwise throws kUsage when `out` may
// not be written.
[[nodiscard]] std::optional<EarlierResult> earlier_result(const CommonOptions& common, const std::filesystem::path& out,
                                                          const WorkFolder& folder, const OrderedJson& run_description);

// dynslice.json as it is written. Where dynslice made the source too, `since_original` and `steps` sum up what all
// commands since the original model did, and the source's record, which is long, comes last.
[[nodiscard]] OrderedJson whole_record(OrderedJson record);
// What a record and those in it say of every command, the first one first.
[[nodiscard]] OrderedJson steps_of(const OrderedJson& record);
// Sizes before the first of such steps and after the last.
[[nodiscard]] OrderedJson change_of(const OrderedJson& steps);

// What an earlier run of this very command wrote before it could say so: its dynslice.json.
[[nodiscard]] std::optional<OrderedJson> finished_earlier(const std::filesystem::path& out,
                                                          const OrderedJson& run_description);
// The record in `text`, which lies at `where`, when it is that of the same command.
[[nodiscard]] std::optional<OrderedJson> record_of_job(const std::string& text, const std::string& where,
                                                       const OrderedJson& run_description);
// As --json prints what was written: the record, what it took, and where it lies.
[[nodiscard]] OrderedJson written_json(OrderedJson record, double seconds, const PeakMemory& peak,
                                       const std::filesystem::path& output);

// Says that nothing is left to do.
[[nodiscard]] EarlierResult tell_finished(const std::filesystem::path& out, OrderedJson record);

}  // namespace dynslice
