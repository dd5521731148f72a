#include "text/tokenizer/bpe_model.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <queue>
#include <utility>

#include "dynslice/support/error.h"
#include "dynslice/text/tokenizer/tokenizer_unicode.h"
#include "text/tokenizer/metaspace.h"

namespace dynslice {
namespace {

// Longer words hardly come twice, and their copies would cost memory.
constexpr size_t kLongestCachedWord = 256;

// The end of the first part of `text` that merges cannot leave: before a "▁" that follows another character.
size_t end_of_metaspace_word(std::string_view text) {
  size_t at = 0;
  while (text.substr(at).starts_with(kMetaspace)) at += kMetaspace.size();
  const size_t next = text.find(kMetaspace, at);
  return next == std::string_view::npos ? text.size() : next;
}

}  // namespace

MergeTable::MergeTable(size_t expected) : entries_(std::bit_ceil(expected * 2 + 2)), mask_(entries_.size() - 1) {}

uint64_t MergeTable::pack(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

size_t MergeTable::slot(uint64_t pair) const {
  uint64_t mixed = pair * 0x9E3779B97F4A7C15u;
  mixed ^= mixed >> 32;
  size_t i = mixed & mask_;
  while (entries_[i].pair != pair && entries_[i].pair != kEmpty) i = (i + 1) & mask_;
  return i;
}

void MergeTable::put(int32_t left, int32_t right, int32_t rank, int32_t id) {
  const uint64_t pair = pack(left, right);
  entries_[slot(pair)] = Entry{pair, rank, id};
}

const MergeTable::Entry* MergeTable::find(int32_t left, int32_t right) const {
  const Entry& entry = entries_[slot(pack(left, right))];
  return entry.pair == kEmpty ? nullptr : &entry;
}

BpeModel::BpeModel(StringMap<int32_t> vocab, const std::vector<BpeMerge>& merges, BpeOptions options,
                   const std::string& where)
    : where_(where), options_(std::move(options)), vocab_(std::move(vocab)), merges_(merges.size()) {
  index_tokens();
  index_merges(merges);
}

void BpeModel::index_tokens() {
  short_characters_.fill(-1);
  bytes_.fill(-1);
  tokens_.reserve(vocab_.size());
  for (const auto& [token, id] : vocab_) {
    if (id < 0 || id > kMaxTokenId) {
      throw_error(ErrorKind::kBadInput, where_, ": token \"", token, "\" has id ", id, "; ids must lie in [0, ",
                  kMaxTokenId, "]");
    }
    const auto [other, fresh] = tokens_.emplace(id, &token);
    if (!fresh) {
      throw_error(ErrorKind::kBadInput, where_, ": id ", id, " is given to two tokens, \"",
                  std::min(*other->second, token), "\" and \"", std::max(*other->second, token), "\"");
    }
    id_limit_ = std::max<int64_t>(id_limit_, int64_t{id} + 1);
    if (!token.empty() && utf8_length(token[0]) == token.size() && token.size() <= 2) {
      short_characters_[code_point_at(token)] = id;
    }
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::array<char, 8> name{};
    std::snprintf(name.data(), name.size(), "<0x%02X>", byte);
    bytes_[byte] = id_of(name.data()).value_or(-1);
  }
}

void BpeModel::index_merges(const std::vector<BpeMerge>& merges) {
  const auto require = [&](const std::string& token, size_t rank) {
    const auto id = id_of(token);
    if (!id) {
      throw_error(ErrorKind::kBadInput, where_, ": merge ", rank, " names the token \"", token,
                  "\", which is not in the vocabulary");
    }
    return *id;
  };
  bool crosses = options_.unk_token.ends_with(kMetaspace);
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    merges_.put(require(left, rank), require(right, rank), static_cast<int32_t>(rank), require(left + right, rank));
    crosses = crosses || (right.starts_with(kMetaspace) && !left.ends_with(kMetaspace));
  }
  words_end_at_metaspace_ = !crosses && id_of(kMetaspace).has_value();
}

std::optional<int32_t> BpeModel::id_of(std::string_view token) const {
  const auto found = vocab_.find(token);
  if (found == vocab_.end()) return std::nullopt;
  return found->second;
}

const std::string* BpeModel::token_of(int32_t id) const {
  const auto found = tokens_.find(id);
  return found == tokens_.end() ? nullptr : found->second;
}

void BpeModel::encode(std::string_view word, Cache& cache, std::vector<int32_t>& ids) const {
  if (options_.ignore_merges) {
    if (const auto id = id_of(word)) {
      ids.push_back(*id);
      return;
    }
  }
  // Metaspace tokenizers without a split give whole documents as one word. Parts that no merge can join give
  // the same ids and can be found in the cache.
  while (words_end_at_metaspace_ && !word.empty()) {
    const size_t end = end_of_metaspace_word(word);
    encode_cached(word.substr(0, end), cache, ids);
    word.remove_prefix(end);
  }
  if (!word.empty()) encode_cached(word, cache, ids);
}

void BpeModel::encode_cached(std::string_view word, Cache& cache, std::vector<int32_t>& ids) const {
  if (const auto hit = cache.words_.find(word); hit != cache.words_.end()) {
    const auto begin = cache.ids_.begin() + static_cast<std::ptrdiff_t>(hit->second.begin);
    ids.insert(ids.end(), begin, begin + static_cast<std::ptrdiff_t>(hit->second.length));
    return;
  }
  std::vector<Symbol> symbols = symbols_of(word);
  merge(symbols);
  const size_t before = ids.size();
  for (const Symbol& symbol : symbols) {
    if (symbol.alive) ids.push_back(symbol.id);
  }
  if (word.size() > kLongestCachedWord) return;
  cache.words_.emplace(word, Cache::Span{cache.ids_.size(), ids.size() - before});
  cache.ids_.insert(cache.ids_.end(), ids.begin() + static_cast<std::ptrdiff_t>(before), ids.end());
}

int32_t BpeModel::id_of_character(std::string_view character) const {
  if (character.size() <= 2) return short_characters_[code_point_at(character)];
  return id_of(character).value_or(-1);
}

bool BpeModel::append_bytes(std::string_view character, std::vector<int32_t>& ids) const {
  const auto id_of_byte = [this](char byte) { return bytes_[static_cast<unsigned char>(byte)]; };
  if (std::any_of(character.begin(), character.end(), [&](char byte) { return id_of_byte(byte) < 0; })) return false;
  for (const char byte : character) ids.push_back(id_of_byte(byte));
  return true;
}

int32_t BpeModel::unk_id() const {
  const auto id = id_of(options_.unk_token);
  if (!id)
    throw_error(ErrorKind::kBadInput, where_, ": unk_token \"", options_.unk_token, "\" is not in the vocabulary");
  return *id;
}

// The order in which pending unknown tokens are flushed is that of Hugging Face's implementation: bytes of a
// fallback do not flush them.
std::vector<BpeModel::Symbol> BpeModel::symbols_of(std::string_view word) const {
  std::vector<int32_t> ids;
  ids.reserve(word.size());
  int32_t pending_unk = -1;
  const auto flush = [&] {
    if (pending_unk >= 0) ids.push_back(std::exchange(pending_unk, -1));
  };
  for (size_t at = 0; at < word.size();) {
    const std::string_view character = word.substr(at, utf8_length(word[at]));
    at += character.size();
    if (const int32_t id = id_of_character(character); id >= 0) {
      flush();
      ids.push_back(id);
    } else if (options_.byte_fallback && append_bytes(character, ids)) {
      continue;
    } else if (!options_.unk_token.empty()) {
      if (!options_.fuse_unk) flush();
      pending_unk = unk_id();
    }
  }
  flush();
  std::vector<Symbol> symbols(ids.size());
  const auto count = static_cast<int32_t>(ids.size());
  for (int32_t i = 0; i < count; ++i)
    symbols[static_cast<size_t>(i)] = {ids[static_cast<size_t>(i)], i - 1, i + 1 < count ? i + 1 : -1, true};
  return symbols;
}

// Joins the pair of the lowest rank, the leftmost first, until no pair has a merge: O(n log n).
void BpeModel::merge(std::vector<Symbol>& symbols) const {
  std::vector<Candidate> storage;
  storage.reserve(symbols.size());
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>(), std::move(storage));
  const auto at = [&](int32_t i) -> Symbol& { return symbols[static_cast<size_t>(i)]; };
  const auto offer = [&](int32_t left) {
    if (left < 0 || at(left).next < 0) return;
    if (const auto* found = merges_.find(at(left).id, at(at(left).next).id)) queue.push({found->rank, left, found->id});
  };
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i) offer(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = at(best.position);
    if (!left.alive || left.next < 0) continue;
    Symbol& right = at(left.next);
    // The pair may have changed since it was queued.
    const auto* found = merges_.find(left.id, right.id);
    if (found == nullptr || found->id != best.id) continue;
    left.id = best.id;
    right.alive = false;
    left.next = right.next;
    if (left.next >= 0) at(left.next).previous = best.position;
    offer(left.previous);
    offer(best.position);
  }
}

}  // namespace dynslice
