// What the small files beside a tokenizer say: tokenizer_config.json, special_tokens_map.json, added_tokens.json.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "text/tokenizer/tokenizer_added_tokens.h"
#include "text/tokenizer/tokenizer_json.h"

namespace dynslice {

struct FolderConfig {
  SpecialTokenNames names;
  std::optional<std::string> unk;
  std::optional<std::string> pad;
  bool add_bos = true;
  bool add_eos = false;
  bool legacy = true;
  std::vector<AddedToken> added;
};

// Of a folder with any or none of these files. Throws kBadInput naming file and key.
FolderConfig read_folder_config(const std::filesystem::path& folder);

}  // namespace dynslice
