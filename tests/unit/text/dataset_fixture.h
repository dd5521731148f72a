// A folder for data sets, and an environment in which none is found elsewhere.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dynslice/text/datasets/dataset.h"
#include "unit/support/error_of.h"

namespace dynslice {

// An empty folder, and an environment in which nothing else can be found and nothing is downloaded.
class DatasetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(::testing::TempDir()) /
              ("dataset_test_" + std::string(info->name()) + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_ / "data");
    for (const char* name : {"DYNSLICE_DATA_DIR", "DYNSLICE_CACHE", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"}) {
      const char* value = std::getenv(name);
      saved_.emplace_back(name, value == nullptr ? std::nullopt : std::optional<std::string>(value));
    }
    ::unsetenv("DYNSLICE_DATA_DIR");
    ::unsetenv("HF_HUB_CACHE");
    ::setenv("DYNSLICE_CACHE", (folder_ / "cache").c_str(), 1);
    ::setenv("HF_HOME", (folder_ / "hf").c_str(), 1);
    ::setenv("HF_HUB_OFFLINE", "1", 1);
  }
  void TearDown() override {
    for (const auto& [name, value] : saved_) value ? ::setenv(name, value->c_str(), 1) : ::unsetenv(name);
    std::filesystem::remove_all(folder_);
  }

  std::filesystem::path write(const std::filesystem::path& name, const std::string& content) const {
    const std::filesystem::path path = folder_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }
  TextSource load(const std::string& spec, TextUse use = TextUse::kEvaluation) const {
    return load_text(spec, use, folder_ / "data", no_progress());
  }
  std::optional<Error> load_error(const std::string& spec, TextUse use = TextUse::kEvaluation) const {
    return error_of([&] { load(spec, use); });
  }

  std::filesystem::path folder_;
  std::vector<std::pair<const char*, std::optional<std::string>>> saved_;
};

}  // namespace dynslice
