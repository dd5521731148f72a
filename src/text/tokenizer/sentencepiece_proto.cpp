#include "text/tokenizer/sentencepiece_proto.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

#include "dynslice/support/error.h"
#include "text/tokenizer/metaspace.h"

namespace dynslice {
namespace {

// Field numbers of sentencepiece_model.proto.
enum ModelField : uint32_t { kPieces = 1, kTrainerSpec = 2, kNormalizerSpec = 3, kDenormalizerSpec = 5 };
enum PieceField : uint32_t { kPiece = 1, kScore = 2, kType = 3 };
enum TrainerField : uint32_t {
  kModelType = 3,
  kVocabSize = 4,
  kTreatWhitespaceAsSuffix = 24,
  kByteFallback = 35,
  kUnkId = 40,
  kBosId = 41,
  kEosId = 42,
  kPadId = 43,
  kUnkPiece = 45,
  kBosPiece = 46,
  kEosPiece = 47,
};
enum NormalizerField : uint32_t {
  kName = 1,
  kPrecompiledCharsmap = 2,
  kAddDummyPrefix = 3,
  kRemoveExtraWhitespaces = 4,
  kEscapeWhitespaces = 5,
};
constexpr uint64_t kBpe = 2;

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

// Protobuf's wire format, as far as ModelProto needs it. Neither library that could read it serves here.
// sentencepiece (0.1.97, Debian 12's) installs no header of ModelProto, and its processor has no accessor for the model
// type, byte fallback, or the normalizer's fields. It also loads a character map without checking it, so the check has
// to read the file first.
// protobuf's lite runtime (3.21 there) cannot be in one process with sentencepiece, which exports an older copy of the
// same symbols: a program with both crashes with its first message. The static library cannot be hidden in ours
// instead: it is not position-independent (relocation R_X86_64_TPOFF32). LibTorch's include folder, moreover, has
// headers of protobuf 3.13, which come first.
class MessageWriter {
 public:
  void integer(uint32_t field, int64_t value) {
    key(field, kVarint);
    varint(static_cast<uint64_t>(value));
  }
  void number(uint32_t field, float value) {
    key(field, kFixed32);
    std::array<char, 4> raw{};
    std::memcpy(raw.data(), &value, raw.size());
    bytes_.append(raw.data(), raw.size());
  }
  void bytes(uint32_t field, std::string_view value) {
    key(field, kBytes);
    varint(value.size());
    bytes_.append(value);
  }
  std::string take() { return std::move(bytes_); }

 private:
  void key(uint32_t field, WireType type) { varint(uint64_t{field} << 3 | type); }
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_.push_back(static_cast<char>(value | 0x80));
    bytes_.push_back(static_cast<char>(value));
  }
  std::string bytes_;
};

// Walks the fields of a message.
class MessageReader {
 public:
  MessageReader(std::string_view message, const std::string& where) : message_(message), where_(where) {}

  struct Field {
    uint32_t number;
    uint64_t integer;        // of a varint field
    std::string_view bytes;  // of a length-delimited field, or the four of a fixed32
  };

  std::optional<Field> next() {
    if (at_ >= message_.size()) return std::nullopt;
    const uint64_t key = varint();
    Field field{static_cast<uint32_t>(key >> 3), 0, {}};
    switch (key & 7) {
      case kVarint:
        field.integer = varint();
        break;
      case kFixed64:
        take(8);
        break;
      case kFixed32:
        field.bytes = take(4);
        break;
      case kBytes:
        field.bytes = take(varint());
        break;
      default:
        refuse();
    }
    return field;
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    refuse();
  }
  std::string_view take(uint64_t length) {
    if (length > message_.size() - at_) refuse();
    const auto part = message_.substr(at_, length);
    at_ += length;
    return part;
  }
  [[noreturn]] void refuse() const {
    throw_error(ErrorKind::kBadInput, where_, ": is not a sentencepiece model (at byte ", at_, " of a message of ",
                message_.size(), "); fetch the file again");
  }

  std::string_view message_;
  const std::string& where_;
  size_t at_ = 0;
};

std::string trainer_spec(const SentencePieceVocabulary& vocabulary) {
  MessageWriter spec;
  spec.integer(kModelType, kBpe);
  spec.integer(kVocabSize, static_cast<int64_t>(vocabulary.pieces.size()));
  spec.integer(kByteFallback, vocabulary.byte_fallback ? 1 : 0);
  const auto special = [&](TrainerField id_field, TrainerField piece_field, const std::optional<int32_t>& id) {
    spec.integer(id_field, id.value_or(-1));
    if (id) spec.bytes(piece_field, vocabulary.pieces[static_cast<size_t>(*id)].text);
  };
  special(kUnkId, kUnkPiece, vocabulary.unk);
  special(kBosId, kBosPiece, vocabulary.bos);
  special(kEosId, kEosPiece, vocabulary.eos);
  spec.integer(kPadId, -1);
  return spec.take();
}

std::string normalizer_spec(const SentencePieceVocabulary& vocabulary) {
  MessageWriter spec;
  spec.bytes(kName, "identity");
  spec.bytes(kPrecompiledCharsmap, "");
  spec.integer(kAddDummyPrefix, vocabulary.add_dummy_prefix ? 1 : 0);
  spec.integer(kRemoveExtraWhitespaces, 0);
  spec.integer(kEscapeWhitespaces, 1);
  return spec.take();
}

uint32_t little_endian_32(std::string_view bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value |= uint32_t{static_cast<unsigned char>(bytes[at + i])} << (8 * i);
  return value;
}

// A precompiled character map: the size of a double array in bytes, the array (units of 32 bits) which holds a
// trie, and the strings that its leaves point to.
class CharsmapChecker {
 public:
  CharsmapChecker(std::string_view map, const std::string& where) : map_(map), where_(where) {}

  void run() {
    if (map_.size() < 4) refuse();
    const uint32_t array_bytes = little_endian_32(map_, 0);
    if (array_bytes == 0 || array_bytes % 4 != 0 || array_bytes >= map_.size() - 4) refuse();
    strings_ = map_.substr(4 + size_t{array_bytes});
    if (strings_.back() != '\0') refuse();
    units_ = array_bytes / 4;
    heights_.assign(units_, kUnvisited);
    visit(0, 0);
  }

 private:
  // sentencepiece has room for 32 prefixes of one text; no key needs to be longer.
  static constexpr int kLongestKey = 32;
  static constexpr int kUnvisited = -1;

  uint32_t unit(uint32_t at) const { return little_endian_32(map_, 4 + size_t{at} * 4); }

  // The length of the longest key below `node`, which a key of length `depth` leads to. Common ends of keys are
  // shared, so that a node may be met more than once.
  int visit(uint32_t node, int depth) {
    if (heights_[node] == kUnvisited) {
      if (depth > kLongestKey) refuse();
      heights_[node] = kLongestKey + 1;  // whoever comes here again before it is known goes in a circle
      heights_[node] = height(node, depth);
    }
    if (depth + heights_[node] > kLongestKey) refuse();
    return heights_[node];
  }

  int height(uint32_t node, int depth) {
    const uint32_t value = unit(node);
    const uint32_t base = node ^ ((value >> 10) << ((value & (1u << 9)) >> 6));
    if ((base | 0xFFu) >= units_) refuse();
    const bool has_leaf = (value >> 8 & 1) != 0;
    if (has_leaf && (unit(base) & 0x7FFFFFFFu) >= strings_.size()) refuse();
    int highest = 0;
    for (uint32_t byte = 1; byte < 256; ++byte) {
      if ((unit(base ^ byte) & 0x800000FFu) == byte) highest = std::max(highest, 1 + visit(base ^ byte, depth + 1));
    }
    return highest;
  }

  [[noreturn]] void refuse() const {
    throw_error(ErrorKind::kBadInput, where_, ": the precompiled character map is damaged; fetch the file again");
  }

  std::string_view map_;
  const std::string& where_;
  std::string_view strings_;
  uint32_t units_ = 0;
  std::vector<int> heights_;
};

void check_charsmap(std::string_view map, const std::string& where) {
  if (!map.empty()) CharsmapChecker(map, where).run();
}

bool is_space(std::string_view text, size_t at) { return text[at] == ' ' || text.substr(at).starts_with(kMetaspace); }

// A space behind something else.
bool holds_inner_space(std::string_view piece) {
  size_t at = 0;
  while (at < piece.size() && is_space(piece, at)) at += piece[at] == ' ' ? 1 : kMetaspace.size();
  for (; at < piece.size(); ++at) {
    if (is_space(piece, at)) return true;
  }
  return false;
}

float float_of(std::string_view bytes) {
  float value = 0;
  if (bytes.size() == sizeof value) std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

SentencePiece read_piece(std::string_view message, const std::string& where) {
  SentencePiece piece;
  MessageReader reader(message, where);
  while (const auto field = reader.next()) {
    if (field->number == kPiece) piece.text = field->bytes;
    if (field->number == kScore) piece.score = float_of(field->bytes);
    if (field->number == kType && field->integer >= 1 && field->integer <= 6) {
      piece.type = static_cast<PieceType>(field->integer);
    }
  }
  return piece;
}

// The special ids, with sentencepiece's defaults where they are not there; negative ones mean none.
void read_trainer(std::string_view message, const std::string& where, SentencePieceVocabulary& vocabulary) {
  int64_t unk = 0, bos = 1, eos = 2;
  uint64_t type = 1;
  MessageReader reader(message, where);
  while (const auto field = reader.next()) {
    const auto id = static_cast<int64_t>(field->integer);
    if (field->number == kModelType) type = field->integer;
    if (field->number == kByteFallback) vocabulary.byte_fallback = field->integer != 0;
    if (field->number == kUnkId) unk = id;
    if (field->number == kBosId) bos = id;
    if (field->number == kEosId) eos = id;
  }
  if (type != kBpe) {
    throw_error(ErrorKind::kBadInput, where, ": is no BPE model, and GGUF files of this architecture know no other");
  }
  const auto place = [](int64_t id) {
    return std::in_range<int32_t>(id) && id >= 0 ? std::optional(static_cast<int32_t>(id)) : std::nullopt;
  };
  vocabulary.unk = place(unk);
  vocabulary.bos = place(bos);
  vocabulary.eos = place(eos);
}

class ModelInspector {
 public:
  explicit ModelInspector(const std::string& where) : where_(where) {}

  void piece(std::string_view message) {
    MessageReader reader(message, where_);
    while (const auto field = reader.next()) {
      if (field->number != kPiece) continue;
      has_metaspace_ = has_metaspace_ || field->bytes == kMetaspace;
      has_inner_space_ = has_inner_space_ || holds_inner_space(field->bytes);
    }
  }

  void trainer(std::string_view message) {
    MessageReader reader(message, where_);
    while (const auto field = reader.next()) {
      if (field->number == kModelType) is_bpe_ = field->integer == kBpe;
      if (field->number == kTreatWhitespaceAsSuffix) space_ends_words_ = field->integer != 0;
    }
  }

  void normalizer(std::string_view message) {
    MessageReader reader(message, where_);
    while (const auto field = reader.next()) {
      if (field->number == kPrecompiledCharsmap) {
        check_charsmap(field->bytes, where_);
        has_charsmap_ = has_charsmap_ || !field->bytes.empty();
      }
      if (field->number == kRemoveExtraWhitespaces) removes_spaces_ = field->integer != 0;
      if (field->number == kEscapeWhitespaces) escapes_spaces_ = field->integer != 0;
    }
  }

  void denormalizer(std::string_view message) {
    MessageReader reader(message, where_);
    while (const auto field = reader.next()) {
      if (field->number == kPrecompiledCharsmap) check_charsmap(field->bytes, where_);
    }
  }

  SentencePieceTraits traits() const {
    const bool keeps_spaces = !has_charsmap_ && !removes_spaces_ && escapes_spaces_ && !space_ends_words_;
    return {is_bpe_ && has_metaspace_ && !has_inner_space_ && keeps_spaces};
  }

 private:
  const std::string& where_;
  bool has_metaspace_ = false;
  bool has_inner_space_ = false;
  bool has_charsmap_ = false;
  // sentencepiece's defaults where a field is not there
  bool is_bpe_ = false;
  bool space_ends_words_ = false;
  bool removes_spaces_ = true;
  bool escapes_spaces_ = true;
};

}  // namespace

std::string serialize_sentencepiece_model(const SentencePieceVocabulary& vocabulary) {
  MessageWriter model;
  for (const SentencePiece& piece : vocabulary.pieces) {
    MessageWriter message;
    message.bytes(kPiece, piece.text);
    message.number(kScore, piece.score);
    message.integer(kType, static_cast<int64_t>(piece.type));
    model.bytes(kPieces, message.take());
  }
  model.bytes(kTrainerSpec, trainer_spec(vocabulary));
  model.bytes(kNormalizerSpec, normalizer_spec(vocabulary));
  return model.take();
}

SentencePieceVocabulary read_sentencepiece_vocabulary(std::string_view serialized, const std::string& where) {
  SentencePieceVocabulary vocabulary;
  MessageReader model(serialized, where);
  while (const auto field = model.next()) {
    if (field->number == kPieces) vocabulary.pieces.push_back(read_piece(field->bytes, where));
    if (field->number == kTrainerSpec) read_trainer(field->bytes, where, vocabulary);
    if (field->number != kNormalizerSpec) continue;
    MessageReader normalizer(field->bytes, where);
    while (const auto entry = normalizer.next()) {
      if (entry->number == kAddDummyPrefix) vocabulary.add_dummy_prefix = entry->integer != 0;
    }
  }
  if (vocabulary.pieces.empty()) throw_error(ErrorKind::kBadInput, where, ": has no pieces; fetch the file again");
  return vocabulary;
}

std::string without_dummy_prefix(std::string serialized) {
  MessageWriter spec;
  spec.integer(kAddDummyPrefix, 0);
  MessageWriter model;
  model.bytes(kNormalizerSpec, spec.take());
  return serialized + model.take();
}

SentencePieceTraits inspect_sentencepiece_model(std::string_view serialized, const std::string& where) {
  ModelInspector inspector(where);
  MessageReader model(serialized, where);
  while (const auto field = model.next()) {
    if (field->number == kPieces) inspector.piece(field->bytes);
    if (field->number == kTrainerSpec) inspector.trainer(field->bytes);
    if (field->number == kNormalizerSpec) inspector.normalizer(field->bytes);
    if (field->number == kDenormalizerSpec) inspector.denormalizer(field->bytes);
  }
  return inspector.traits();
}

}  // namespace dynslice
