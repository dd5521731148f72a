#include "dynslice/checkpoint/gguf_export.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <span>
#include <utility>

#include "checkpoint/chunks.h"
#include "checkpoint/gguf_checkpoint.h"
#include "checkpoint/gguf_form.h"
#include "checkpoint/gguf_metadata.h"
#include "dynslice/formats/gguf/ggml_quantize.h"
#include "dynslice/formats/gguf/gguf_writer.h"
#include "dynslice/model/architecture.h"
#include "dynslice/model/config_json.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/error.h"
#include "dynslice/support/format.h"
#include "dynslice/text/tokenizer/gguf_vocabulary.h"
#include "dynslice/text/tokenizer/tokenizer.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSlicedModelsElsewhere = "; it runs with dynslice and with transformers";

const OutputTensor* find_tensor(const std::vector<OutputTensor>& tensors, const std::string& name) {
  const auto found = std::ranges::find(tensors, name, &OutputTensor::name);
  return found == tensors.end() ? nullptr : &*found;
}

// The first tensor that a dense model of the same architecture has not, or has in another shape.
std::optional<std::string> shape_obstacle(const ModelConfig& config) {
  ModelConfig dense = parse_dense_config(config.source, config.model_type, "the source configuration");
  if (!architecture_of(config).gguf_of_unequal_layers.empty() && config.num_layers() == dense.num_layers()) {
    for (size_t i = 0; i < dense.layers.size(); ++i) {  // sizes may differ from layer to layer
      dense.layers[i].intermediate_size = config.layers[i].intermediate_size;
      dense.layers[i].num_attention_heads = config.layers[i].num_attention_heads;
      dense.layers[i].num_key_value_heads = config.layers[i].num_key_value_heads;
    }
  }
  const std::vector<OutputTensor> here = checkpoint_tensors(config, at::kFloat);
  const std::vector<OutputTensor> there = checkpoint_tensors(dense, at::kFloat);
  for (const OutputTensor& tensor : here) {
    const OutputTensor* place = find_tensor(there, tensor.name);
    if (place != nullptr && place->shape == tensor.shape) continue;
    const std::string found = "tensor \"" + tensor.name + "\" is " + describe_shape(tensor.shape) + "; ";
    if (place == nullptr) return found + "llama.cpp has no place for it" + kSlicedModelsElsewhere;
    return found + "llama.cpp has room for " + describe_shape(place->shape) + " only" + kSlicedModelsElsewhere;
  }
  for (const OutputTensor& tensor : there) {
    if (find_tensor(here, tensor.name) != nullptr) continue;
    return "there is no tensor \"" + tensor.name + "\", without which llama.cpp loads no model" +
           kSlicedModelsElsewhere;
  }
  return std::nullopt;
}

// Of layers that slide.
std::optional<std::string> window_obstacle(const ModelConfig& config, const std::string& runtime) {
  const Architecture& architecture = architecture_of(config);
  if (architecture.gguf_has_one_theta && config.sliding_rope && config.sliding_rope->theta != config.rope.theta) {
    return "layers that slide have a rope_theta of their own; " + runtime + " has one for all";
  }
  const int64_t known = architecture.gguf_layers_that_slide;
  if (known == 0 || config.sliding_window.has_value() == (config.num_layers() == known)) return std::nullopt;
  return "the model has " + std::to_string(config.num_layers()) + " layers, and " +
         (config.sliding_window ? "some" : "none") + " of them slide (sliding_window); " + runtime +
         " lets layers slide where there are " + std::to_string(known) + ", and nowhere else";
}

// Of the output matrix and of logits.
std::optional<std::string> head_obstacle(const ModelConfig& config, const std::string& runtime) {
  const Architecture& architecture = architecture_of(config);
  if (architecture.gguf_head == GgufHead::kTied && !config.tie_word_embeddings) {
    return "the output matrix is one of its own (lm_head.weight); " + runtime + " takes the embedding for it";
  }
  if (architecture.gguf_head == GgufHead::kOwn && config.tie_word_embeddings) {
    return "the embedding is the output matrix, too (tie_word_embeddings); " + runtime + " wants one of its own";
  }
  if (architecture.score_cap > 0 && (config.score_cap == 0 || config.logit_cap == 0)) {
    return "scores or logits are not capped (attn_logit_softcapping, final_logit_softcapping); " + runtime +
           " caps both";
  }
  return std::nullopt;
}

// Of rotary embeddings.
std::optional<std::string> rope_obstacle(const ModelConfig& config, const std::string& runtime) {
  const Architecture& architecture = architecture_of(config);
  const RopeConfig usual, &rope = config.rope;
  if (rope.beta_fast != usual.beta_fast || rope.beta_slow != usual.beta_slow || rope.truncates != usual.truncates) {
    return "rope is scaled by yarn with a beta_fast, beta_slow or truncate of its own; " + runtime + " has " +
           format_fixed(usual.beta_fast, 0) + ", " + format_fixed(usual.beta_slow, 0) + " and true only";
  }
  if (rope.scaling == RopeScalingKind::kYarn && config.sliding_rope && !architecture.gguf_has_one_theta) {
    return "rope is scaled by yarn, and not that of the layers that slide; " + runtime + " scales both";
  }
  if (!architecture.has_rope_divisors && rope.scaling != RopeScalingKind::kLongRope) {
    for (const RopeTensor& tensor : gguf_rope_tensors(config))
      return "the rotary frequencies are divided pair by pair (" + tensor.name + "); " + runtime +
             " has no place for that";
  }
  return std::nullopt;
}

// What llama.cpp's own architecture lacks of what ours may have.
std::optional<std::string> runtime_obstacle(const ModelConfig& config) {
  const Architecture& architecture = architecture_of(config);
  const std::string runtime = "llama.cpp's " + std::string(architecture.gguf);
  const int64_t heads = config.layers.front().num_attention_heads * config.layers.front().head_dim;
  if (architecture.heads_fill_stream && heads != config.hidden_size) {
    return "the heads together are " + std::to_string(heads) + " wide; " + runtime + " has room for hidden_size (" +
           std::to_string(config.hidden_size) + ") only";
  }
  if (!architecture.has_output_bias && config.o_bias) {
    return "attention's output has a bias (self_attn.o_proj.bias); " + runtime + " has no place for it";
  }
  if (!architecture.has_mlp_bias && config.mlp_bias) {
    return "the MLPs have biases (mlp.up_proj.bias); " + runtime + " has no place for them";
  }
  if (architecture.unrotated_period > 0) {
    const std::vector<bool> known = every_nth_layer(config.layers.size(), architecture.unrotated_period);
    for (size_t i = 0; i < known.size(); ++i) {
      if (known[i] == (!config.layer_is_unrotated.empty() && config.layer_is_unrotated[i])) continue;
      return "layer " + std::to_string(i) + " is " + (known[i] ? "" : "not ") + "rotated (no_rope_layers); " + runtime +
             " leaves out every " + std::to_string(architecture.unrotated_period) + "th only";
    }
  }
  for (size_t i = 0; i < config.layers.size(); ++i) {
    if (architecture.gguf_of_unequal_layers == architecture.gguf && !config.layers[i].has_attention())
      return "layer " + std::to_string(i) + " has no attention; " + runtime + " has no such layers";
  }
  for (const LayerShape& shape : config.layers) {
    if (shape.is_delta() && shape.delta.key_dim != shape.delta.value_dim)
      return "heads of gated delta nets have keys and values of different widths; " + runtime + " has one for both";
  }
  if (const auto obstacle = window_obstacle(config, runtime)) return obstacle;
  if (const auto obstacle = head_obstacle(config, runtime)) return obstacle;
  const bool has_scale = architecture.has_multipliers;
  if (!has_scale && config.attention_scale != 0 &&
      std::abs(config.attention_scale / gguf_attention_scale(config) - 1) > 1e-6) {
    return "attention's scores are multiplied by " + std::to_string(config.attention_scale) + "; " + runtime +
           " has room for " + std::to_string(gguf_attention_scale(config)) + " only";
  }
  return rope_obstacle(config, runtime);
}

// Embedding and head are worth six bits, as llama-quantize has it: their errors reach the logits undamped.
bool keeps_six_bits(const std::string& name, GgmlType wanted) {
  const bool is_coarse =
      wanted == GgmlType::kQ2_K || wanted == GgmlType::kQ3_K || wanted == GgmlType::kQ4_K || wanted == GgmlType::kQ5_K;
  return is_coarse && (name == "token_embd.weight" || name == "output.weight");
}

// What a matrix of this name would have if its rows were whole blocks.
GgmlType preferred_type(const std::string& name, GgmlType wanted) {
  return keeps_six_bits(name, wanted) ? GgmlType::kQ6_K : wanted;
}

// Rows of some matrices have pieces of `part_width` columns, which are not cut by blocks; 0: none.
GgmlType type_of(const std::string& name, const std::vector<int64_t>& shape, int64_t part_width, GgmlType wanted) {
  if (shape.size() != 2) return GgmlType::kF32;
  return type_for_rows(preferred_type(name, wanted), part_width > 0 ? part_width : shape.back());
}

// A convolution's tensor has no dimension of one value there.
std::vector<int64_t> shape_there(const std::vector<int64_t>& shape) {
  return shape.size() == 3 ? std::vector<int64_t>{shape.front(), shape.back()} : shape;
}

// Row of Hugging Face's tensor that row `row` of the file holds: the file keeps the rotary pairs (j, j + width / 2) of
// a head side by side.
int64_t paired_row(int64_t row, int64_t head_width) {
  const int64_t in_head = row % head_width;
  return row - in_head + in_head / 2 + in_head % 2 * (head_width / 2);
}

class GgufExporter {
 public:
  GgufExporter(const Checkpoint& checkpoint, const GgufExportOptions& options)
      : checkpoint_(checkpoint),
        options_(options),
        layout_(checkpoint_tensors(checkpoint.config(), at::kFloat)),
        rope_tensors_(gguf_rope_tensors(checkpoint.config())) {
    for (const RopeTensor& tensor : rope_tensors_)
      tensors_.push_back({tensor.name, {static_cast<int64_t>(tensor.values.size())}, GgmlType::kF32});
    for (const OutputTensor& tensor : layout_) {
      const std::string name = gguf_name(architecture_of(checkpoint.config()), tensor.name);
      if (!tensors_.empty() && tensors_.back().name == name) {  // further rows of what is one tensor there
        tensors_.back().shape.front() += tensor.shape.front();
        targets_.push_back(tensors_.size() - 1);
        continue;
      }
      const auto given = options.types.find(tensor.name);
      const int64_t part_width = gguf_form(checkpoint.config(), tensor.name).part_width;
      const bool is_given = given != options.types.end();
      const GgmlType type = is_given ? given->second : type_of(name, tensor.shape, part_width, options.type);
      if (is_given && part_width % ggml_format(type).values != 0) refuse_blocks(tensor.name, part_width, type);
      targets_.push_back(tensors_.size());
      tensors_.push_back({name, shape_there(tensor.shape), type});
    }
  }

  const std::vector<GgufOutputTensor>& tensors() const { return tensors_; }

  void write(GgufWriter& writer, ProgressSink& sink) const {
    int64_t values = 0;
    for (const OutputTensor& tensor : layout_) values += count_values(tensor);
    ProgressTask progress(sink, "Writing GGUF", values, "parameters");
    for (const RopeTensor& tensor : rope_tensors_) writer.write(tensor.name, std::as_bytes(std::span(tensor.values)));
    for (size_t i = 0; i < layout_.size(); ++i) write_tensor(writer, layout_[i], tensors_[targets_[i]], progress);
  }

 private:
  [[noreturn]] void refuse_blocks(const std::string& name, int64_t part_width, GgmlType type) const {
    throw_error(ErrorKind::kUsage, checkpoint_.path().string(), ": tensor \"", name,
                "\": llama.cpp has its columns in ", "another order, in pieces of ", part_width, ", which blocks of ",
                ggml_format(type).values, " weights would cut; give --types of smaller blocks, such as q8_0,q4_0");
  }

  int64_t head_width(const std::string& name) const {
    const auto place = split_layer_name(name);
    return checkpoint_.config().layers.at(place ? static_cast<size_t>(place->first) : 0).head_dim;
  }

  // Query and key rows, and their biases, lie in rotary pairs.
  bool is_paired(const std::string& name) const {
    const auto place = split_layer_name(name);
    const LayerPart* part = place ? find_part(place->second) : nullptr;
    return architecture_of(checkpoint_.config()).pairs_rotary_rows && part != nullptr && part->is_rotary;
  }

  void write_tensor(GgufWriter& writer, const OutputTensor& tensor, const GgufOutputTensor& target,
                    ProgressTask& progress) const {
    if (const GgufForm form = gguf_form(checkpoint_.config(), tensor.name); !form.is_ours()) {
      write_formed(writer, tensor, target, form);
      progress.advance(count_values(tensor));
      return;
    }
    if (tensor.shape.size() == 3) {
      const at::Tensor values = checkpoint_.load(tensor.name, tensor.shape, at::kFloat);
      writer.write(target.name, encode(tensor.name, values, tensor.shape.back(), target.type));
      progress.advance(count_values(tensor));
      return;
    }
    const int64_t rows = tensor.shape.front(), columns = tensor.shape.size() == 1 ? 1 : tensor.shape.back();
    const int64_t head = head_width(tensor.name);
    // Whole heads, and whole blocks of a vector.
    const int64_t step = tensor.shape.size() == 1 ? rows : std::max<int64_t>(1, kChunkValues / columns / head) * head;
    for (int64_t row = 0; row < rows; row += step) {
      const int64_t end = std::min(rows, row + step);
      if (options_.is_encoded && options_.is_encoded(tensor.name)) {
        writer.write(target.name, in_order(tensor.name, options_.encoded_rows(tensor.name, row, end)));
      } else {
        const at::Tensor values = checkpoint_.load_rows(tensor.name, tensor.shape, row, end, at::kFloat);
        writer.write(target.name, encode(tensor.name, values, columns, target.type));
      }
      progress.advance((end - row) * columns);
    }
  }

  // A tensor of a gated delta net, as a whole.
  void write_formed(GgufWriter& writer, const OutputTensor& tensor, const GgufOutputTensor& target,
                    const GgufForm& form) const {
    const bool is_encoded = options_.is_encoded && options_.is_encoded(tensor.name);
    const int64_t rows = tensor.shape.front();
    at::Tensor values = is_encoded ? options_.encoded_rows(tensor.name, 0, rows)
                                   : checkpoint_.load(tensor.name, tensor.shape, at::kFloat);
    if (!form.rows.empty()) values = values.index_select(0, at::tensor(form.rows));
    if (!form.column_parts.empty()) values = reordered_columns(values.contiguous(), form.column_parts);
    if (form.is_rate) values = values.exp().neg();
    const int64_t columns = tensor.shape.size() == 1 ? 1 : tensor.shape.back();
    writer.write(target.name, is_encoded ? in_order(tensor.name, values)
                                         : encode(tensor.name, values.contiguous(), columns, target.type));
  }

  // Encoded rows [rows, bytes of a row] as the file has them.
  std::vector<std::byte> in_order(const std::string& name, const at::Tensor& rows) const {
    const at::Tensor whole = rows.contiguous();
    const int64_t head = head_width(name);
    const auto row_bytes = static_cast<size_t>(whole.size(1));
    const auto* source = reinterpret_cast<const std::byte*>(whole.const_data_ptr<uint8_t>());
    std::vector<std::byte> bytes(static_cast<size_t>(whole.size(0)) * row_bytes);
    const bool paired = is_paired(name);
    for (int64_t row = 0; row < whole.size(0); ++row) {
      const auto from = static_cast<size_t>(paired ? paired_row(row, head) : row);
      std::copy_n(source + from * row_bytes, row_bytes, bytes.data() + static_cast<size_t>(row) * row_bytes);
    }
    return bytes;
  }

  std::vector<std::byte> encode(const std::string& name, const at::Tensor& values, int64_t columns,
                                GgmlType type) const {
    // A vector of F32 is a matrix of one column; every other type has whole blocks in a row.
    const int64_t rows = values.numel() / columns, head = head_width(name);
    const GgmlFormat& format = ggml_format(type);
    const auto row_bytes = static_cast<size_t>(columns / format.values * format.bytes);
    std::vector<std::byte> bytes(static_cast<size_t>(rows) * row_bytes);
    const float* source = values.const_data_ptr<float>();
    const bool paired = is_paired(name);
    std::atomic<bool> finite = true;
    at::parallel_for(0, rows, std::max<int64_t>(1, kGrainValues / columns), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const float* from = source + (paired ? paired_row(row, head) : row) * columns;
        const auto to = std::span(bytes).subspan(static_cast<size_t>(row) * row_bytes, row_bytes);
        if (!quantize(type, {from, static_cast<size_t>(columns)}, to)) finite = false;
      }
    });
    if (!finite) {
      throw_error(ErrorKind::kBadInput, checkpoint_.path().string(), ": tensor \"", name,
                  "\" has values too large for ", format.name, "; give --type bf16 or f32");
    }
    return bytes;
  }

  const Checkpoint& checkpoint_;
  const GgufExportOptions& options_;
  std::vector<OutputTensor> layout_;
  std::vector<RopeTensor> rope_tensors_;
  std::vector<GgufOutputTensor> tensors_;
  std::vector<size_t> targets_;  // of the layout's tensors, in tensors_
};

// The name a person would give the model: that of its folder or file.
std::string model_name(const fs::path& path) {
  fs::path name = fs::absolute(path).lexically_normal();
  if (!name.has_filename()) name = name.parent_path();
  return name.extension() == ".gguf" ? name.stem().string() : name.filename().string();
}

// Texts on which tokenizers differ: numbers, spaces, contractions, letters of many scripts, what is no letter.
constexpr const char* kCheckTexts[] = {
    "Hello world, don't stop: I'LL be there at 12:30!",
    " in 1234567 steps of 3.14159  and   more\n\n\n  lines\n\tof text\r\nend ",
    "na\xC3\xAFve Z\xC3\xBCrich \xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E "
    "\xD1\x80\xD1\x83\xD1\x81\xD1\x81\xD0\xBA\xD0\xB8\xD0\xB9 "
    "\xEF\xAC\x81 \xF0\x9F\x9A\x80\xE2\x80\x8D?",
    "{\"x\": [1, 22, 333, 4444]}  // ===== ''''' ``` _a_b_ <p>\\n</p>",
};

// The tokenizer as the file will have it against the one it came from, on texts; before hours of work, not after.
void check_tokenizer(const fs::path& source, const fs::path& out, const GgufMetadata& metadata, bool force) {
  GgufMetadata whole = {{"general.architecture", std::string("llama")}};
  whole.insert(whole.end(), metadata.begin(), metadata.end());
  const GgufWriter writer(out, whole, {}, force);
  const auto before = load_tokenizer(source);
  const auto after = load_tokenizer(writer.partial());
  for (const char* text : kCheckTexts) {
    if (before->encode(text) == after->encode(text)) continue;
    throw_error(ErrorKind::kBadInput, source.string(),
                ": its tokenizer cannot be said in GGUF's terms: the ids of a test text would be others");
  }
}

// What the file calls itself by: the type asked for or, where types were given one by one, that of most layers' bytes.
GgmlType file_type(const GgufExportOptions& options, const std::vector<GgufOutputTensor>& tensors) {
  std::map<GgmlType, uint64_t> bytes;
  for (const GgufOutputTensor& tensor : tensors) {
    if (tensor.shape.size() > 1 && tensor.name.starts_with("blk.")) bytes[tensor.type] += count_bytes(tensor);
  }
  if (options.types.empty() || bytes.empty()) return options.type;
  return std::ranges::max_element(bytes, {}, [](const auto& entry) { return entry.second; })->first;
}

void check_exportable(const Checkpoint& checkpoint) {
  if (const auto obstacle = gguf_obstacle(checkpoint.config())) {
    throw_error(ErrorKind::kBadInput, checkpoint.path().string(), ": cannot be exported to GGUF: ", *obstacle);
  }
}

void check_apart(const Checkpoint& checkpoint, const fs::path& out) {
  for (const fs::path& file : checkpoint.files()) {
    std::error_code error;
    if (!fs::equivalent(file, out, error) || error) continue;
    throw_error(ErrorKind::kUsage, out.string(), ": is the model that is to be exported; choose another file with -o");
  }
}

// All that can be refused beforehand, and the tokenizer as the file will have it.
GgufMetadata checked_tokenizer(const Checkpoint& checkpoint, const fs::path& out, bool force) {
  const ModelConfig& config = checkpoint.config();
  check_exportable(checkpoint);
  check_apart(checkpoint, out);
  GgufMetadata tokenizer =
      gguf_tokenizer_metadata(checkpoint.path(), {config.vocab_size, config.bos_token_id, config.eos_token_id});
  check_tokenizer(checkpoint.path(), out, tokenizer, force);
  return tokenizer;
}

std::vector<std::string> notices_of(const ModelConfig& config, const GgufExportOptions& options,
                                    const std::vector<GgufOutputTensor>& tensors) {
  std::vector<std::string> notices;
  const bool is_heeded = architecture_of(config).window == WindowRule::kByPattern;
  if (config.sliding_window && *config.sliding_window < config.max_position_embeddings && !is_heeded) {
    notices.push_back("llama.cpp does not know this architecture's sliding window: past " +
                      std::to_string(*config.sliding_window) + " tokens of context its results differ");
  }
  if (!options.types.empty()) return notices;  // whoever names types knows where others stand in
  // How many matrices fell back, from which type to which.
  std::map<std::pair<GgmlType, GgmlType>, int64_t> fallbacks;
  for (const GgufOutputTensor& tensor : tensors) {
    const GgmlType preferred = preferred_type(tensor.name, options.type);
    if (tensor.shape.size() > 1 && tensor.type != preferred) ++fallbacks[{preferred, tensor.type}];
  }
  for (const auto& [types, count] : fallbacks) {
    const GgmlFormat& preferred = ggml_format(types.first);
    notices.push_back(std::to_string(count) + (count == 1 ? " matrix" : " matrices") +
                      " whose rows are no multiple of " + std::to_string(preferred.values) + " values" +
                      (count == 1 ? " is" : " are") + " stored as " + ggml_format(types.second).name + " instead of " +
                      preferred.name);
  }
  return notices;
}

}  // namespace

std::optional<std::string> gguf_obstacle(const ModelConfig& config) {
  if (architecture_of(config).gguf.empty()) return "llama.cpp does not know " + config.model_type + " models";
  if (const auto obstacle = shape_obstacle(config)) return obstacle;
  return runtime_obstacle(config);
}

uint64_t gguf_tensor_bytes(const Checkpoint& checkpoint, const GgufExportOptions& options) {
  check_exportable(checkpoint);
  const GgufExporter exporter(checkpoint, options);
  uint64_t bytes = 0;
  for (const GgufOutputTensor& tensor : exporter.tensors()) bytes += count_bytes(tensor);
  return bytes;
}

void check_gguf_export(const Checkpoint& checkpoint, const fs::path& out, bool force) {
  checked_tokenizer(checkpoint, out, force);
}

GgufExport export_gguf(const Checkpoint& checkpoint, const fs::path& out, const GgufExportOptions& options,
                       ProgressSink& progress) {
  const ModelConfig& config = checkpoint.config();
  const GgufMetadata tokenizer = checked_tokenizer(checkpoint, out, options.force);
  const GgufExporter exporter(checkpoint, options);
  GgufMetadata metadata =
      gguf_model_metadata(config, model_name(checkpoint.path()), file_type(options, exporter.tensors()));
  metadata.insert(metadata.end(), tokenizer.begin(), tokenizer.end());
  if (!options.record.empty()) metadata.emplace_back("dynslice.record", options.record);
  GgufWriter writer(out, metadata, exporter.tensors(), options.force);
  exporter.write(writer, progress);
  writer.commit();

  GgufExport result;
  result.architecture = gguf_architecture(config);
  result.bytes = writer.file_bytes();
  result.tensors = static_cast<int64_t>(exporter.tensors().size());
  const GgufFile written(out);
  for (const GgufTensor& tensor : written.tensors()) {
    result.bytes_by_type[ggml_format(tensor.type).name] += tensor.bytes;
  }
  result.notices = notices_of(config, options, exporter.tensors());
  return result;
}

}  // namespace dynslice
