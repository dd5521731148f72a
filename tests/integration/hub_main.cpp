// hub_main model|dataset ORG/NAME[@REVISION] [FILE]: prints the path of a file, or of a whole model, in the
// cache after downloading what is missing. For the tests; settings come from the HF_* environment variables.
#include <csignal>
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "dynslice/hub/hub.h"
#include "dynslice/support/error.h"
#include "dynslice/support/log.h"
#include "dynslice/support/progress.h"

namespace {

using namespace dynslice;

// Tells how far a download has come.
class Notes final : public ProgressSink {
 public:
  void start(const std::string&, int64_t, const std::string&) override { done_ = 0; }
  void advance(int64_t amount) override {
    done_ += amount;
    std::cerr << "note: " + std::to_string(done_) + " bytes are there\n";
  }
  void finish() override {}

 private:
  int64_t done_ = 0;
};

void on_interrupt(int) { request_interrupt(); }

std::filesystem::path fetch(const std::vector<std::string>& arguments) {
  const bool known_kind = !arguments.empty() && (arguments[0] == "model" || arguments[0] == "dataset");
  if (!known_kind || arguments.size() < 2 || arguments.size() > 3) {
    throw_error(ErrorKind::kUsage, "usage: hub_main model|dataset ORG/NAME[@REVISION] [FILE]");
  }
  const auto id = parse_hub_id(arguments[1]);
  if (!id)
    throw_error(ErrorKind::kUsage, "\"", arguments[1], "\" is no hub id; it must be of the form org/name[@revision]");
  const HubOptions options = HubOptions::from_environment();
  const HubRepoKind kind = arguments[0] == "model" ? HubRepoKind::kModel : HubRepoKind::kDataset;
  Notes notes;
  if (arguments.size() == 3) return hub_file(options, kind, *id, arguments[2], notes);
  if (kind == HubRepoKind::kDataset) throw_error(ErrorKind::kUsage, "a data set needs a FILE");
  return hub_model(options, *id, notes);
}

}  // namespace

int main(int count, char** values) {
  std::signal(SIGINT, on_interrupt);
  set_log_handler([](LogLevel, const std::string& message) { std::cerr << "note: " << message << '\n'; });
  try {
    std::cout << fetch({values + 1, values + count}).string() << '\n';
    return 0;
  } catch (const Error& error) {
    std::cerr << "error: " << error.what() << '\n';
    return error.exit_code();
  }
}
