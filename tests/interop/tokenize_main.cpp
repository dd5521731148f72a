// Tokenizes files for comparison with other programs: `tokenize CHECKPOINT FILE...` prints the ids of each file
// on a line; `tokenize --write CHECKPOINT FOLDER` writes the tokenizer files of a checkpoint.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>

#include "dynslice/support/error.h"
#include "dynslice/support/files.h"
#include "dynslice/text/tokenizer/tokenizer.h"

namespace {

void print_ids(const char* checkpoint, std::span<char*> files) {
  using Clock = std::chrono::steady_clock;
  const auto tokenizer = dynslice::load_tokenizer(checkpoint);
  for (const char* file : files) {
    const std::string text = dynslice::read_file(file);
    const auto begin = Clock::now();
    const auto ids = tokenizer->encode(text, true);
    const std::chrono::duration<double> seconds = Clock::now() - begin;
    std::fprintf(stderr, "%s: %zu ids in %.3f s\n", file, ids.size(), seconds.count());
    for (const int32_t id : ids) std::printf("%d ", id);
    std::printf("\n");
  }
}

void write_files(const char* checkpoint, const char* folder) {
  for (const std::string& name : dynslice::write_tokenizer_files(checkpoint, folder)) std::printf("%s\n", name.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: tokenize CHECKPOINT FILE... | tokenize --write CHECKPOINT FOLDER\n");
    return 2;
  }
  try {
    if (argc == 4 && std::strcmp(argv[1], "--write") == 0) {
      write_files(argv[2], argv[3]);
    } else {
      print_ids(argv[1], std::span(argv, static_cast<size_t>(argc)).subspan(2));
    }
  } catch (const dynslice::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return error.exit_code();
  }
  return 0;
}
