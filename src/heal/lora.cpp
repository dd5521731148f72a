#include "dynslice/heal/lora.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "aten.h"
#include "dynslice/checkpoint/tensor_copy.h"
#include "dynslice/model/architecture.h"
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

std::vector<Module> modules_of(const LayerShape& shape) {
  std::vector<Module> modules;
  for (const MatrixPart& one : matrix_parts(shape)) {
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

StoredTensor stored_weight(const ModelConfig& config, size_t layer, const std::string& module) {
  return stored_tensor(config, layer_tensor_name(static_cast<int64_t>(layer), module + ".weight"));
}

// "model.layers.3.self_attn.q_proj" as transformers has it in a model that it has loaded.
std::string loaded_module(const ModelConfig& config, size_t layer, const std::string& module) {
  constexpr std::string_view kKind = ".weight", kOutside = "language_model.model.", kInside = "model.language_model.";
  std::string name = stored_weight(config, layer, module).name;
  name.resize(name.size() - kKind.size());
  return name.starts_with(kOutside) ? std::string(kInside) + name.substr(kOutside.size()) : name;
}

// Rows of the linear of the loaded model that this is in.
int64_t loaded_rows(const ModelConfig& config, size_t layer, const LowRankUpdate& part) {
  const LayerPart& of = *find_part(part.module + ".weight");
  const Fusion* fusion = config.is_ordinary() ? fusion_of(architecture_of(config), of.role, &Fusion::module) : nullptr;
  if (fusion == nullptr) return part.rows;
  int64_t rows = 0;
  for (const Role role : fusion->roles) rows += part_of(role).rows(config.layers[layer]);
  return rows;
}

// Updates of rows of one linear of the loaded model.
struct LoadedUpdate {
  std::string module;
  int64_t rows = 0;
  std::vector<const LowRankUpdate*> parts;
  std::vector<int64_t> first_rows;  // of theirs

  [[nodiscard]] int64_t rank() const {
    int64_t rank = 0;
    for (const LowRankUpdate* part : parts) rank += part->a.size(0);
    return rank;
  }
  // One below the other.
  [[nodiscard]] at::Tensor a() const {
    std::vector<at::Tensor> all;
    for (const LowRankUpdate* part : parts) all.push_back(part->a.cpu());
    return at::cat(all);
  }
  // Each in its rows and columns.
  [[nodiscard]] at::Tensor b() const {
    at::Tensor all = at::zeros({rows, rank()}, at::kFloat);
    int64_t column = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      const at::Tensor b = parts[i]->b.cpu();
      all.narrow(0, first_rows[i], b.size(0)).narrow(1, column, b.size(1)).copy_(b);
      column += b.size(1);
    }
    return all;
  }
};

std::vector<LoadedUpdate> loaded_updates(const ModelConfig& config, size_t layer, const LayerUpdates& updates) {
  std::vector<LoadedUpdate> loaded;
  for (const LowRankUpdate& part : updates.parts) {
    const std::string module = loaded_module(config, layer, part.module);
    if (loaded.empty() || loaded.back().module != module)
      loaded.push_back({module, loaded_rows(config, layer, part), {}, {}});
    loaded.back().parts.push_back(&part);
    loaded.back().first_rows.push_back(stored_weight(config, layer, part.module).first_row);
  }
  return loaded;
}

std::string adapter_name(const LoadedUpdate& update, const char* factor) {
  return "base_model.model." + update.module + ".lora_" + factor + ".weight";
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

// How many updates linears of a name have in a layer, by the last words of these.
std::map<std::string, int64_t> updates_by_module(const ModelConfig& config, const LoraOptions& options) {
  std::map<std::string, int64_t> most;
  for (size_t layer = 0; layer < config.layers.size(); ++layer) {
    std::map<std::string, int64_t> counts;
    for (const Module& module : modules_of(config.layers[layer])) {
      if (is_wanted(module, options)) ++counts[last_part(loaded_module(config, layer, module.name))];
    }
    for (const auto& [name, count] : counts) most[name] = std::max(most[name], count);
  }
  return most;
}

}  // namespace

std::vector<std::string> updated_modules(const ModelConfig& config, const LoraOptions& options) {
  std::vector<std::string> names;
  for (size_t layer = 0; layer < config.layers.size(); ++layer) {
    for (const Module& module : modules_of(config.layers[layer])) {
      const std::string name = last_part(loaded_module(config, layer, module.name));
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
    for (const Module& module : modules_of(shape)) {
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
    for (const Module& module : modules_of(shape)) {
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
    for (const auto& [suffix, values] : layer_tensors(layer)) {
      writer.write(layer_tensor_name(index, suffix), values);
      task.advance(values.numel());
    }
  }
}

std::vector<OutputTensor> adapter_tensors(const ModelConfig& config, const std::vector<LayerUpdates>& updates) {
  std::vector<OutputTensor> tensors;
  for (size_t layer = 0; layer < updates.size(); ++layer) {
    for (const LoadedUpdate& update : loaded_updates(config, layer, updates[layer])) {
      const int64_t in = update.parts.front()->a.size(1);
      tensors.push_back({adapter_name(update, "A"), {update.rank(), in}, at::kFloat});
      tensors.push_back({adapter_name(update, "B"), {update.rows, update.rank()}, at::kFloat});
    }
  }
  return tensors;
}

void write_adapter(const ModelConfig& config, const std::vector<LayerUpdates>& updates, CheckpointWriter& writer) {
  for (size_t layer = 0; layer < updates.size(); ++layer) {
    for (const LoadedUpdate& update : loaded_updates(config, layer, updates[layer])) {
      writer.write(adapter_name(update, "A"), update.a());
      writer.write(adapter_name(update, "B"), update.b());
    }
  }
}

OrderedJson adapter_config(const ModelConfig& config, const LoraOptions& options, const std::string& base_model) {
  OrderedJson json = {{"peft_type", "LORA"},
                      {"task_type", "CAUSAL_LM"},
                      {"base_model_name_or_path", base_model},
                      {"r", options.rank},
                      {"lora_alpha", options.alpha},
                      {"lora_dropout", options.dropout},
                      {"target_modules", updated_modules(config, options)},
                      {"bias", "none"},
                      {"fan_in_fan_out", false},
                      {"inference_mode", true}};
  if (config.is_wrapped()) {  // other parts have linears of the same names: all of a name must match
    std::string names;
    for (const std::string& name : updated_modules(config, options)) names += (names.empty() ? "" : "|") + name;
    json["target_modules"] = R"(model\.language_model\.layers\.\d+\.\w+\.()" + names + ")";
  }
  // Linears that are stored as one have the ranks of all of them together, and the same scale.
  const std::map<std::string, int64_t> counts = updates_by_module(config, options);
  for (const auto& [name, count] : counts) {
    if (count == 1) continue;
    json["rank_pattern"][name] = count * options.rank;
    json["alpha_pattern"][name] = static_cast<double>(count) * options.alpha;
  }
  return json;
}

}  // namespace dynslice
