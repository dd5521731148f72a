#include "dynslice/heal/lora.h"

#include <algorithm>
#include <cmath>

#include "aten.h"
#include "dynslice/checkpoint/tensor_copy.h"
#include "dynslice/model/tensor_layout.h"
#include "dynslice/support/error.h"
#include "dynslice/tensor/random.h"

namespace dynslice {
namespace {

// Where a linear of a layer is, and its shape.
struct Module {
  std::string name;  // "self_attn.q_proj"
  Linear DecoderLayer::* matrix = nullptr;
  int64_t first_row = 0, rows = 0, in = 0;
};

std::vector<Module> modules_of(const LayerShape& shape, int64_t head_dim) {
  std::vector<Module> modules;
  for (const MatrixPart& one : matrix_parts(shape, head_dim)) {
    modules.push_back({std::string(one.part->module), one.matrix, one.first_row, one.rows, one.columns});
  }
  return modules;
}

std::string last_part(const std::string& name) { return name.substr(name.rfind('.') + 1); }

bool is_wanted(const Module& module, const LoraOptions& options) {
  const std::vector<std::string>& wanted = options.modules;
  return wanted.empty() || std::find(wanted.begin(), wanted.end(), last_part(module.name)) != wanted.end();
}

void check_modules(const std::vector<std::string>& modules) {
  const std::vector<std::string> known = linear_names();
  for (const std::string& module : modules) {
    if (std::find(known.begin(), known.end(), module) != known.end()) continue;
    std::string names;
    for (const std::string& name : known) names += (names.empty() ? "" : ", ") + name;
    throw_error(ErrorKind::kUsage, "--target-modules \"", module, "\": is not one of ", names);
  }
}

// "model.layers.3.self_attn.q_proj" as a checkpoint of the model has it.
std::string stored_module(const ModelConfig& config, size_t layer, const std::string& module) {
  constexpr std::string_view kKind = ".weight";
  const std::string name = layer_tensor_name(static_cast<int64_t>(layer), module + std::string(kKind));
  const std::string stored = stored_tensor(config, name).name;
  return stored.substr(0, stored.size() - kKind.size());
}

std::string adapter_name(const ModelConfig& config, size_t layer, const LowRankUpdate& part, const char* factor) {
  return "base_model.model." + stored_module(config, layer, part.module) + ".lora_" + factor + ".weight";
}

// Ids of the examples, padded to `length`.
at::Tensor padded_ids(const std::vector<TrainingExample>& set, std::span<const int64_t> examples, int64_t length) {
  std::vector<int64_t> ids(examples.size() * static_cast<size_t>(length), 0);
  for (size_t row = 0; row < examples.size(); ++row) {
    const TrainingExample& example = set[static_cast<size_t>(examples[row])];
    std::copy(example.ids.begin(), example.ids.end(), ids.begin() + static_cast<int64_t>(row) * length);
  }
  return at::tensor(ids, at::kLong).view({static_cast<int64_t>(examples.size()), length});
}

}  // namespace

std::vector<std::string> updated_modules(const ModelConfig& config, const LoraOptions& options) {
  std::vector<std::string> names;
  for (size_t layer = 0; layer < config.layers.size(); ++layer) {
    for (const Module& module : modules_of(config.layers[layer], config.head_dim)) {
      const std::string name = last_part(stored_module(config, layer, module.name));
      if (is_wanted(module, options) && std::ranges::find(names, name) == names.end()) names.push_back(name);
    }
  }
  return names;
}

std::vector<int64_t> lora_parameters(const ModelConfig& config, const LoraOptions& options) {
  check_modules(options.modules);
  std::vector<int64_t> counts;
  for (const LayerShape& shape : config.layers) {
    int64_t count = 0;
    for (const Module& module : modules_of(shape, config.head_dim)) {
      if (is_wanted(module, options)) count += options.rank * (module.in + module.rows);
    }
    counts.push_back(count);
  }
  return counts;
}

std::vector<LayerUpdates> make_lora(const ModelConfig& config, const LoraOptions& options, at::Device device) {
  check_modules(options.modules);
  const at::Generator random = seeded_generator(at::kCPU, options.seed);
  std::vector<LayerUpdates> updates;
  bool any = false;
  for (const LayerShape& shape : config.layers) {
    LayerUpdates layer;
    layer.scale = options.alpha / static_cast<double>(options.rank);
    layer.dropout = options.dropout;
    for (const Module& module : modules_of(shape, config.head_dim)) {
      if (!is_wanted(module, options)) continue;
      const double bound = 1 / std::sqrt(static_cast<double>(module.in));
      const at::Tensor a = at::empty({options.rank, module.in}, at::kFloat).uniform_(-bound, bound, random);
      const at::Tensor b = at::zeros({module.rows, options.rank}, at::TensorOptions().dtype(at::kFloat).device(device));
      layer.parts.push_back({module.name, module.matrix, module.first_row, module.rows, a.to(device), b});
      any = true;
    }
    updates.push_back(std::move(layer));
  }
  if (!any) throw_error(ErrorKind::kUsage, "no layer of the model has a module that --target-modules names");
  return updates;
}

LoraResult heal_by_lora(const ResidentModel& model, const std::vector<TrainingExample>& training,
                        const std::vector<TrainingExample>& held_out, const LoraOptions& lora,
                        const TrainingOptions& options, bool recomputes, ProgressSink& progress,
                        const JournalPhase& journal) {
  TrainableLayers layers;
  layers.config = &model.config();
  layers.device = model.options().device;
  layers.dtype = model.options().dtype;
  layers.layers = model.layers();
  layers.updates = make_lora(model.config(), lora, layers.device);
  layers.recomputes = recomputes;
  const auto has_parts = [](const LayerUpdates& layer) { return !layer.parts.empty(); };
  layers.first_trainable = std::ranges::find_if(layers.updates, has_parts) - layers.updates.begin();
  const std::vector<at::Tensor> parameters = parameters_of(layers.updates);
  for (const at::Tensor& parameter : parameters) parameter.requires_grad_();
  const auto entry = [&](std::span<const int64_t> examples, bool is_held_out, int64_t length) {
    return model.embed(padded_ids(is_held_out ? held_out : training, examples, length));
  };
  LanguageModelObjective objective(layers, model.head(), entry, training, held_out, options.micro_batch);
  LoraResult result;
  result.training = train(parameters, objective, options, "Healing", progress, journal);
  for (const at::Tensor& parameter : parameters) parameter.requires_grad_(false);
  result.updates = std::move(layers.updates);
  return result;
}

void write_healed(const Checkpoint& source, const std::vector<LayerUpdates>& updates, at::ScalarType dtype,
                  CheckpointWriter& writer, ProgressSink& progress) {
  const ModelConfig& config = source.config();
  ProgressTask task(progress, "Writing", count_cost(config).parameters, "parameters");
  const auto healed = [&](int64_t layer) { return !updates.at(static_cast<size_t>(layer)).parts.empty(); };
  for (const OutputTensor& tensor : checkpoint_tensors(config, dtype)) {
    const auto place = split_layer_name(tensor.name);
    if (!place || !healed(place->first)) copy_tensor(source, tensor.name, tensor, writer, task);
  }
  for (int64_t index = 0; index < config.num_layers(); ++index) {
    if (!healed(index)) continue;
    const DecoderLayer layer =
        with_updates(load_decoder_layer(source, index, at::kFloat, at::kCPU), updates.at(static_cast<size_t>(index)));
    for (const auto& [suffix, values] : layer_tensors(layer, config.head_dim)) {
      writer.write(layer_tensor_name(index, suffix), values);
      task.advance(values.numel());
    }
  }
}

std::vector<OutputTensor> adapter_tensors(const ModelConfig& config, const std::vector<LayerUpdates>& updates) {
  std::vector<OutputTensor> tensors;
  for (size_t layer = 0; layer < updates.size(); ++layer) {
    for (const LowRankUpdate& part : updates[layer].parts) {
      tensors.push_back({adapter_name(config, layer, part, "A"), part.a.sizes().vec(), at::kFloat});
      tensors.push_back({adapter_name(config, layer, part, "B"), part.b.sizes().vec(), at::kFloat});
    }
  }
  return tensors;
}

void write_adapter(const ModelConfig& config, const std::vector<LayerUpdates>& updates, CheckpointWriter& writer) {
  for (size_t layer = 0; layer < updates.size(); ++layer) {
    for (const LowRankUpdate& part : updates[layer].parts) {
      writer.write(adapter_name(config, layer, part, "A"), part.a.cpu());
      writer.write(adapter_name(config, layer, part, "B"), part.b.cpu());
    }
  }
}

OrderedJson adapter_config(const ModelConfig& config, const LoraOptions& options, const std::string& base_model) {
  return {{"peft_type", "LORA"},
          {"task_type", "CAUSAL_LM"},
          {"base_model_name_or_path", base_model},
          {"r", options.rank},
          {"lora_alpha", options.alpha},
          {"lora_dropout", options.dropout},
          {"target_modules", updated_modules(config, options)},
          {"bias", "none"},
          {"fan_in_fan_out", false},
          {"inference_mode", true}};
}

}  // namespace dynslice
