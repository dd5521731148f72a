#include "dynslice/walk/journal.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>

#include "aten.h"
#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/support/hash.h"
#include "dynslice/support/log.h"
#include "dynslice/support/system_error.h"
#include "dynslice/tensor/dtype.h"

namespace dynslice {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStateFile = "journal.json";
constexpr int64_t kFormat = 1;
// A save is due when the time since the last one is this many times what it is expected to cost.
constexpr double kWorkPerSave = 30;
// Sizes from which a save's cost is that of its bytes.
constexpr uint64_t kLargeSave = uint64_t{16} << 20;
constexpr uint64_t kLargestStateFile = uint64_t{256} << 20;

std::string dump(const OrderedJson& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/true, OrderedJson::error_handler_t::replace);
}

std::string checksum_of(const std::string& text) {
  Checksum checksum;
  checksum.update(text.data(), text.size());
  return checksum.hex();
}

// As it is after a way through a file: bytes that are not UTF-8 replaced.
OrderedJson plain(const OrderedJson& json) { return OrderedJson::parse(dump(json)); }

std::string describe_value(const OrderedJson& object, const std::string& key) {
  if (!object.contains(key)) return "not given";
  std::string text = object.at(key).is_string() ? object.at(key).get<std::string>() : dump(object.at(key));
  if (text.size() > 100) text = text.substr(0, 97) + "...";
  return text;
}

std::string describe_position(const std::string& phase, int64_t next, int64_t layers) {
  const std::string step = phase.starts_with("training") ? "update " : phase == "gradients" ? "window " : "layer ";
  return (next < layers ? step + std::to_string(next + 1) + " of " + std::to_string(layers)
                        : "the end of " + step + std::to_string(layers)) +
         " (" + phase + ")";
}

// Bytes that a tensor of this shape has; nothing when they are more than `limit`.
std::optional<uint64_t> bytes_of(const std::vector<int64_t>& shape, at::ScalarType dtype, uint64_t limit) {
  uint64_t bytes = c10::elementSize(dtype);
  for (const int64_t size : shape) {
    if (size < 0 || (size > 0 && bytes > limit / static_cast<uint64_t>(size))) return std::nullopt;
    bytes *= static_cast<uint64_t>(size);
  }
  return bytes;
}

}  // namespace

Journal::Journal(std::shared_ptr<WorkFolder> folder, const OrderedJson& fingerprint, const OrderedJson& job,
                 const JournalOptions& options)
    : folder_(std::move(folder)), fingerprint_(plain(fingerprint)), job_(plain(job)), options_(options) {
  const bool found = folder_->open_existing() && fs::exists(fs::symlink_status(state_path()));
  if (!found) {
    if (options_.resume)
      log(LogLevel::kInfo, "Nothing to resume in " + this->folder().string() + ": starting from the beginning");
    return;
  }
  folder_->keep();  // until the command is done, whatever else goes wrong
  if (!options_.resume) {
    bool usable = true;
    try {
      usable = load();
    } catch (const Error&) {
      usable = false;
    }
    if (usable && !options_.start_over) {
      throw_error(ErrorKind::kUsage, this->folder().string(), ": an earlier run was stopped at ", position_,
                  "; give --resume to go on from there, or --force to start over");
    }
    log(LogLevel::kInfo, "Starting over: what an earlier run left in " + this->folder().string() + " is dropped" +
                             (usable ? "; it was stopped at " + position_ : ", its journal is damaged"));
    remove_files();
    folder_->clear();
    job_ = plain(job);  // that of the earlier run was read over it
    results_ = OrderedJson::object();
    walk_.reset();
    attached_ = OrderedJson();
    earlier_seconds_ = 0;
    position_.clear();
    return;
  }
  load();
  check_fingerprint();
  resumed_ = true;
  remove_data_files(walk_ ? walk_->file : "");
  log(LogLevel::kInfo, "Resuming at " + position_);
}

fs::path Journal::state_path() const { return folder() / kStateFile; }

void Journal::fail(const std::string& what) const {
  throw_error(ErrorKind::kBadInput, state_path().string(), ": the journal is damaged (", what, "); delete ",
              folder().string(), " or start without --resume");
}

bool Journal::load() {
  try {
    const std::string text = read_file(state_path(), kLargestStateFile);
    const Json json = parse_json(text, "state file");
    const JsonReader reader(json, "state file");
    if (reader.string("kind") != "dynslice.journal") reader.fail("kind", "\"dynslice.journal\"");
    const OrderedJson ordered = OrderedJson::parse(text);
    if (checksum_of(dump(ordered.at("state"))) != reader.string("checksum")) fail("its checksum is wrong");
    read_state(json.at("state"), ordered.at("state"));
  } catch (const Error& error) {
    if (std::string_view(error.what()).find("the journal is damaged") != std::string_view::npos) throw;
    fail(error.what());
  } catch (const Json::exception& error) {
    fail("a value is not what it must be");
  }
  return true;
}

void Journal::read_state(const Json& state, const OrderedJson& ordered) {
  const JsonReader reader(state, "state");
  if (reader.integer("format") != kFormat) fail("it is of another version of dynslice");
  sequence_ = reader.integer("sequence", 1, int64_t{1} << 60);
  position_ = reader.string("position");
  earlier_seconds_ = reader.number("seconds");
  reader.object("fingerprint");
  reader.object("results");
  kept_fingerprint_ = ordered.at("fingerprint");
  job_ = ordered.at("job");
  results_ = ordered.at("results");
  attached_ = ordered.at("attached");
  if (reader.has("walk")) read_walk(state.at("walk"), ordered.at("walk"));
}

void Journal::read_walk(const Json& json, const OrderedJson& ordered) {
  const JsonReader reader(json, "walk");
  Walk walk;
  walk.phase = reader.string("phase");
  walk.layers = reader.integer("layers", 0, 1 << 20);
  walk.next = reader.integer("next", 0, walk.layers);
  walk.values = ordered.at("values");
  walk.file = reader.string("file");
  walk.bytes = static_cast<uint64_t>(reader.integer("bytes", 0, INT64_MAX));
  if (!is_journal_file(walk.file) || walk.file.find('/') != std::string::npos) fail("a file name is none of its own");
  for (const auto& [name, count] : json.at("streams").items()) walk.streams.emplace_back(name, count.get<int64_t>());
  for (const Json& item : json.at("tensors")) {
    const JsonReader one(item, "tensor");
    Entry entry;
    entry.name = one.string("name");
    entry.chunk = one.integer("chunk", -1, INT64_MAX);
    const auto dtype = dtype_of_file(one.string("dtype"));
    if (!dtype) one.fail("dtype", "a known one");
    entry.dtype = *dtype;
    entry.shape = item.at("shape").get<std::vector<int64_t>>();
    entry.strides = item.at("strides").get<std::vector<int64_t>>();
    entry.offset = static_cast<uint64_t>(one.integer("offset", 0, INT64_MAX));
    entry.bytes = static_cast<uint64_t>(one.integer("bytes", 0, INT64_MAX));
    entry.checksum = one.string("checksum");
    const auto numel = static_cast<int64_t>(entry.bytes / c10::elementSize(entry.dtype));
    const bool strides_fit = entry.strides.size() == entry.shape.size() &&
                             std::all_of(entry.strides.begin(), entry.strides.end(), [&](int64_t stride) {
                               return stride >= 0 && stride <= std::max<int64_t>(1, numel);
                             });
    if (bytes_of(entry.shape, entry.dtype, walk.bytes) != entry.bytes || entry.offset > walk.bytes ||
        entry.bytes > walk.bytes - entry.offset || !strides_fit) {
      fail("tensor " + entry.name + " has an impossible size");
    }
    walk.entries.push_back(std::move(entry));
  }
  std::error_code error;
  if (fs::file_size(folder() / walk.file, error) != walk.bytes || error) {
    fail(walk.file + " is missing or has another size than " + std::to_string(walk.bytes) + " bytes");
  }
  walk_ = std::move(walk);
}

void Journal::check_fingerprint() const {
  const auto differs = [&](const std::string& key) {
    throw_error(ErrorKind::kUsage, folder().string(), ": was begun by another job: ", key, " was ",
                describe_value(kept_fingerprint_, key), " and is ", describe_value(fingerprint_, key),
                " now; resume it with the same options and inputs, or start over with --force");
  };
  for (const auto& [key, value] : kept_fingerprint_.items()) {
    if (!fingerprint_.contains(key) || fingerprint_.at(key) != value) differs(key);
  }
  for (const auto& [key, value] : fingerprint_.items()) {
    if (!kept_fingerprint_.contains(key)) differs(key);
  }
}

std::optional<OrderedJson> Journal::result(const std::string& phase) const {
  const auto found = results_.find(phase);
  return found == results_.end() ? std::nullopt : std::optional<OrderedJson>(*found);
}

void Journal::finish(const std::string& phase, OrderedJson result) {
  results_[phase] = std::move(result);
  results_unsaved_ = true;
  if (is_due(0)) write(phase, std::nullopt, nullptr);
}

void Journal::restore_values(const WalkState& state) const {
  for (const WalkState::Value& value : state.values) {
    try {
      value.restore(walk_->values.at(value.name));
    } catch (const Json::exception&) {
      fail("value " + value.name + " is missing or of another type");
    }
  }
}

std::optional<int64_t> Journal::restore(const std::string& phase, const WalkState& state,
                                        const at::Device& device) const {
  if (!resumed_ || !walk_ || walk_->phase != phase) return std::nullopt;
  for (const auto& [name, stream] : state.streams) {
    const auto kept = std::find_if(walk_->streams.begin(), walk_->streams.end(),
                                   [&, &wanted = name](const auto& one) { return one.first == wanted; });
    if (kept == walk_->streams.end()) fail("stream " + name + " is missing");
    const auto chunks = static_cast<size_t>(
        std::count_if(walk_->entries.begin(), walk_->entries.end(),
                      [&, &wanted = name](const Entry& entry) { return entry.name == wanted && entry.chunk >= 0; }));
    if (kept->second != static_cast<int64_t>(chunks)) fail("chunks of stream " + name + " are missing");
    stream->chunks.assign(chunks, at::Tensor());
  }
  const File file(folder() / walk_->file, O_RDONLY);
  if (!file.is_open()) fail(walk_->file + " cannot be opened");
  for (const Entry& entry : walk_->entries) {
    const auto named = [&](const auto& one) { return one.name == entry.name; };
    const auto stream = std::find_if(state.streams.begin(), state.streams.end(), named);
    const auto tensor = std::find_if(state.tensors.begin(), state.tensors.end(), named);
    if (entry.chunk >= 0) {
      const bool fits =
          stream != state.streams.end() && entry.chunk < static_cast<int64_t>(stream->stream->chunks.size());
      if (!fits) fail("a chunk of stream " + entry.name + " is none of this walk");
      stream->stream->replace(static_cast<size_t>(entry.chunk), read_entry(file, entry).to(device));
    } else {
      if (tensor == state.tensors.end()) fail("tensor " + entry.name + " is none of this walk");
      *tensor->tensor = read_entry(file, entry).to(tensor->on_host ? at::Device(at::kCPU) : device);
    }
  }
  restore_values(state);
  return walk_->next;
}

at::Tensor Journal::read_entry(const File& file, const Entry& entry) const {
  at::Tensor values = at::empty_strided(entry.shape, entry.strides, entry.dtype);
  if (!values.is_non_overlapping_and_dense()) fail("tensor " + entry.name + " has impossible strides");
  auto* bytes = static_cast<std::byte*>(values.data_ptr());
  if (file.read_at({bytes, entry.bytes}, entry.offset) != entry.bytes) fail(walk_->file + " cannot be read");
  Checksum checksum;
  checksum.update(bytes, entry.bytes);
  if (checksum.hex() != entry.checksum) fail("the checksum of " + entry.name + " in " + walk_->file + " is wrong");
  return values;
}

void Journal::save(const std::string& phase, int64_t next, int64_t layers, const WalkState& state) {
  uint64_t bytes = 0;
  for (const auto& [name, tensor, on_host] : state.tensors) bytes += tensor->defined() ? tensor->nbytes() : 0;
  for (const auto& [name, stream] : state.streams) {
    for (const at::Tensor& chunk : stream->chunks) bytes += chunk.nbytes();
  }
  if (!is_due(bytes)) return;
  Walk walk;
  walk.phase = phase;
  walk.next = next;
  walk.layers = layers;
  write(phase, std::move(walk), &state);
}

bool Journal::is_due(uint64_t bytes) const {
  if (options_.pace == JournalPace::kOff || broken_) return false;
  if (options_.pace == JournalPace::kEvery) return true;
  const double expected = seconds_per_save_ + static_cast<double>(bytes) * seconds_per_byte_;
  return std::chrono::duration<double>(Clock::now() - saved_).count() >= kWorkPerSave * expected;
}

double Journal::seconds_so_far() const {
  return earlier_seconds_ + std::chrono::duration<double>(Clock::now() - started_).count();
}

// With `state`, the walk's data are written anew; without, `walk` is one that is on disk, or nothing.
void Journal::write(const std::string& phase, std::optional<Walk> walk, const WalkState* state) {
  options_.fault.begin(phase);
  const auto begin = Clock::now();
  const std::string previous = position_;
  ++sequence_;
  try {
    folder_->open();
    if (attachment_) attached_ = attachment_();
    if (walk && state != nullptr) write_data(*walk, *state);
    options_.fault.reached(SaveMoment::kData);
    position_ = walk ? describe_position(walk->phase, walk->next, walk->layers)
                     : "the step after " + (results_.empty() ? "" : std::prev(results_.end()).key());
    write_state(walk);
    sync_path(folder());
  } catch (const Error& error) {
    --sequence_;
    position_ = previous;
    broken_ = true;
    remove_data_files(walk_ ? walk_->file : "");
    log(LogLevel::kWarning,
        std::string("the journal cannot be kept any more, the run goes on without it: ") + error.what());
    return;
  }
  folder_->keep();
  walk_ = std::move(walk);
  results_unsaved_ = false;
  remove_data_files(walk_ ? walk_->file : "");
  saved_ = Clock::now();
  const double seconds = std::chrono::duration<double>(saved_ - begin).count();
  const uint64_t bytes = walk_ && state != nullptr ? walk_->bytes : 0;
  if (bytes >= kLargeSave) {
    seconds_per_byte_ = seconds / static_cast<double>(bytes);
  } else {
    seconds_per_save_ = seconds;
  }
  options_.fault.reached(SaveMoment::kSaved);
}

void Journal::write_data(Walk& walk, const WalkState& state) const {
  walk.file = "journal-" + std::to_string(sequence_) + ".bin";
  const fs::path path = folder() / walk.file;
  const File file(path, O_WRONLY | O_CREAT | O_TRUNC);
  if (!file.is_open()) throw_system_error(path, "cannot be written", errno);
  const auto add = [&](const std::string& name, int64_t chunk, const at::Tensor& values) {
    const at::Tensor here = values.cpu();
    const at::Tensor dense = here.is_non_overlapping_and_dense() ? here : here.contiguous();
    Entry entry{name,           chunk, dense.scalar_type(), dense.sizes().vec(), dense.strides().vec(), walk.bytes,
                dense.nbytes(), {}};
    const auto* first = static_cast<const std::byte*>(dense.const_data_ptr());
    if (!file.write({first, entry.bytes})) throw_system_error(path, "cannot be written", errno);
    Checksum checksum;
    checksum.update(first, entry.bytes);
    entry.checksum = checksum.hex();
    walk.bytes += entry.bytes;
    walk.entries.push_back(std::move(entry));
  };
  for (const auto& [name, tensor, on_host] : state.tensors) {
    if (tensor->defined()) add(name, -1, *tensor);
  }
  for (const auto& [name, stream] : state.streams) {
    int64_t chunk = 0;
    for (const at::Tensor& values : stream->chunks) {
      add(name, chunk++, values);
      if (stream->store) stream->store->drop_pages(values);
    }
    walk.streams.emplace_back(name, chunk);
  }
  if (!file.sync_data()) throw_system_error(path, "cannot be written", errno);
  walk.values = OrderedJson::object();
  for (const WalkState::Value& value : state.values) walk.values[value.name] = value.saved();
}

void Journal::write_state(const std::optional<Walk>& walk) const {
  OrderedJson state;
  state["format"] = kFormat;
  state["sequence"] = sequence_;
  state["position"] = position_;
  state["seconds"] = seconds_so_far();
  state["fingerprint"] = fingerprint_;
  state["job"] = job_;
  state["results"] = results_;
  state["attached"] = attached_;
  state["walk"] = OrderedJson();
  if (walk) {
    OrderedJson json = {{"phase", walk->phase},   {"next", walk->next}, {"layers", walk->layers},
                        {"values", walk->values}, {"file", walk->file}, {"bytes", walk->bytes}};
    json["streams"] = OrderedJson::object();
    for (const auto& [name, chunks] : walk->streams) json["streams"][name] = chunks;
    json["tensors"] = OrderedJson::array();
    for (const Entry& entry : walk->entries) {
      json["tensors"].push_back({{"name", entry.name},
                                 {"chunk", entry.chunk},
                                 {"dtype", file_dtype_name(entry.dtype)},
                                 {"shape", entry.shape},
                                 {"strides", entry.strides},
                                 {"offset", entry.offset},
                                 {"bytes", entry.bytes},
                                 {"checksum", entry.checksum}});
    }
    state["walk"] = std::move(json);
  }
  const std::string checksum = checksum_of(dump(state));
  const OrderedJson whole = {{"kind", "dynslice.journal"}, {"checksum", checksum}, {"state", std::move(state)}};
  write_file_atomically(state_path(), dump(whole) + "\n", [this] { options_.fault.reached(SaveMoment::kState); });
}

// Also what a killed run left of a state file it was writing.
void Journal::remove_data_files(const std::string& except) const {
  std::error_code error;
  for (fs::directory_iterator entry(folder(), error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (is_journal_file(name) && name != kStateFile && name != except) fs::remove(entry->path(), error);
  }
}

bool Journal::keep() {
  if (results_unsaved_ && !broken_ && options_.pace != JournalPace::kOff) {
    const bool superseded = walk_ && results_.contains(walk_->phase);
    attachment_ = nullptr;  // what was attached at the last save belongs to the walk that was
    write("", superseded ? std::nullopt : walk_, nullptr);
  }
  if (has_state()) folder_->keep();
  return has_state();
}

void Journal::remove_files() {
  attachment_ = nullptr;
  if (folder_->is_open()) {
    std::error_code ignored;
    fs::remove(state_path(), ignored);  // first: a state whose data are gone would be a damaged journal
    remove_data_files("");
    folder_->keep(false);
  }
  sequence_ = 0;
  walk_.reset();  // nothing is left to be kept
  results_unsaved_ = false;
}

bool Journal::is_in(const fs::path& folder) {
  std::error_code ignored;
  return fs::exists(folder / kStateFile, ignored);
}

}  // namespace dynslice
