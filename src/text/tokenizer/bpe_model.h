// Byte pair encoding: the vocabulary, the ranked merges, and what becomes of characters the vocabulary lacks.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace dynslice {

// Ids above are refused: no model has so many tokens, and logits of that width would not fit in memory.
inline constexpr int64_t kMaxTokenId = (int64_t{1} << 24) - 1;

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};

// Keyed by text; looked up by std::string_view without a copy.
template <typename Value>
using StringMap = std::unordered_map<std::string, Value, StringHash, std::equal_to<>>;

struct BpeMerge {
  std::string left;
  std::string right;
};

struct BpeOptions {
  std::string unk_token;       // stands for characters that the vocabulary lacks; empty: they are left out
  bool fuse_unk = false;       // a run of unknown characters gives one unk_token
  bool byte_fallback = false;  // such characters become <0xNN> tokens, where all of them exist
  bool ignore_merges = false;  // a word that is in the vocabulary is its token, whatever the merges say
};

// (left id, right id) -> (rank, id of the merged token): open addressing, because merging is nothing but look-ups.
class MergeTable {
 public:
  struct Entry {
    uint64_t pair = kEmpty;
    int32_t rank = 0;
    int32_t id = 0;
  };

  explicit MergeTable(size_t expected);
  void put(int32_t left, int32_t right, int32_t rank, int32_t id);  // a later one replaces an earlier one
  const Entry* find(int32_t left, int32_t right) const;

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  static uint64_t pack(int32_t left, int32_t right);
  size_t slot(uint64_t pair) const;

  std::vector<Entry> entries_;
  size_t mask_;
};

// Guarantees: encode gives what Hugging Face's BPE gives for the same vocabulary, merges and options; all ids
// it gives are in [0, id_limit()).
class BpeModel {
 public:
  // Throws kBadInput beginning with `where` for ids that are negative, too large or given twice, and for
  // merges of tokens that the vocabulary lacks.
  BpeModel(StringMap<int32_t> vocab, const std::vector<BpeMerge>& merges, BpeOptions options, const std::string& where);
  BpeModel(const BpeModel&) = delete;
  BpeModel& operator=(const BpeModel&) = delete;

  // Words that were met before. One for each text; not shared between threads.
  class Cache {
    friend class BpeModel;
    struct Span {
      size_t begin;
      size_t length;
    };
    StringMap<Span> words_;
    std::vector<int32_t> ids_;
  };

  // Appends the ids of one pre-token.
  void encode(std::string_view word, Cache& cache, std::vector<int32_t>& ids) const;

  std::optional<int32_t> id_of(std::string_view token) const;
  const std::string* token_of(int32_t id) const;  // nullptr when there is none
  size_t size() const { return vocab_.size(); }
  int64_t id_limit() const { return id_limit_; }  // one more than the largest id

 private:
  struct Symbol {
    int32_t id;
    int32_t previous;
    int32_t next;
    bool alive;
  };
  struct Candidate {
    int32_t rank;
    int32_t position;
    int32_t id;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };

  void index_tokens();
  void index_merges(const std::vector<BpeMerge>& merges);
  void encode_cached(std::string_view word, Cache& cache, std::vector<int32_t>& ids) const;
  std::vector<Symbol> symbols_of(std::string_view word) const;
  int32_t id_of_character(std::string_view character) const;
  bool append_bytes(std::string_view character, std::vector<int32_t>& ids) const;
  int32_t unk_id() const;
  void merge(std::vector<Symbol>& symbols) const;

  std::string where_;
  BpeOptions options_;
  StringMap<int32_t> vocab_;
  std::unordered_map<int32_t, const std::string*> tokens_;
  int64_t id_limit_ = 0;
  MergeTable merges_;
  std::array<int32_t, 0x800> short_characters_{};  // ids of the characters of one and two bytes; -1: none
  std::array<int32_t, 256> bytes_{};               // ids of <0x00> .. <0xFF>; -1: none
  bool words_end_at_metaspace_ = false;            // no merge crosses from another character to "▁"
};

}  // namespace dynslice
