#include "text/datasets/dataset_server.h"

#include <algorithm>
#include <cstdint>

#include "dynslice/hub/hub.h"
#include "dynslice/hub/hub_connection.h"
#include "dynslice/support/environment.h"
#include "dynslice/support/error.h"
#include "dynslice/support/json.h"

namespace dynslice {
namespace {

constexpr int64_t kRowsPerPage = 100;  // the most that the server gives
constexpr int64_t kMaxRows = 10'000'000;
constexpr size_t kMaxPageBytes = size_t{64} << 20;

// The hub's address with "datasets-server." in front of its host, as the Python package `datasets` has it.
std::string server_of(const std::string& endpoint) {
  const std::string named = environment("DYNSLICE_DATASETS_SERVER");
  if (!named.empty()) {
    if (url_origin(named).empty()) {
      throw_error(ErrorKind::kUsage, "DYNSLICE_DATASETS_SERVER is \"", named,
                  "\"; it must be a URL such as https://datasets-server.huggingface.co");
    }
    return named.ends_with('/') ? named.substr(0, named.size() - 1) : named;
  }
  const size_t host = endpoint.find("://") + 3;
  return endpoint.substr(0, host) + "datasets-server." + endpoint.substr(host);
}

std::string page_url(const std::string& server, const DatasetSplit& split, int64_t offset) {
  return server + "/rows?dataset=" + url_encode_path(split.dataset) + "&config=" + url_encode_path(split.config) +
         "&split=" + url_encode_path(split.split) + "&offset=" + std::to_string(offset) +
         "&length=" + std::to_string(kRowsPerPage);
}

[[noreturn]] void throw_refused(const std::string& url, const HttpReply& reply) {
  const bool needs_token = reply.trouble == HttpTrouble::kNone && (reply.status == 401 || reply.status == 403);
  throw_error(ErrorKind::kMissingData, url, ": ", reply.describe(),
              needs_token ? "; set HF_TOKEN to a token that may read it"
              : reply.trouble == HttpTrouble::kNone && reply.status == 404 ? "; the hub does not show this data set"
                                                                           : "; check the network, or try again later");
}

// Appends the page's rows as lines, and gives the number of rows that the split has.
int64_t append_page(const std::string& text, const std::string& url, int64_t offset, std::string& lines,
                    int64_t& rows) {
  const Json json = parse_json(text, url);
  const JsonReader page(json, url);
  if (page.boolean_or("partial", false)) {
    throw_error(ErrorKind::kMissingData, url,
                ": the server has only a part of this split; get the whole with the Python "
                "package `datasets` and to_json");
  }
  const int64_t total = page.integer("num_rows_total", 0, kMaxRows);
  if (!page.has("rows") || !json["rows"].is_array()) page.fail("rows", "a list of rows");
  for (const Json& item : json["rows"]) {
    const JsonReader row(item, url + ": rows");
    if (row.integer("row_idx") != offset + rows) row.fail("row_idx", std::to_string(offset + rows));
    if (item.contains("truncated_cells") && !item["truncated_cells"].empty()) {
      row.fail("truncated_cells", "none: the server has cut a text short");
    }
    lines += row.object("row").raw().dump() + "\n";
    ++rows;
  }
  return total;
}

}  // namespace

std::string fetch_rows(const DatasetSplit& split, ProgressSink& progress) {
  HubOptions options = HubOptions::from_environment();
  const std::string name = split.dataset + " (" + split.config + ", " + split.split + ")";
  options.endpoint = server_of(options.endpoint);
  if (options.offline) {
    throw_error(ErrorKind::kMissingData, name, ": HF_HUB_OFFLINE forbids to download it");
  }
  HubConnection server(options);
  ProgressTask task(progress, "downloading " + name, 0, "rows");
  std::string lines;
  int64_t have = 0, total = 1;
  while (have < total) {
    const std::string url = page_url(options.endpoint, split, have);
    std::string text;
    const HttpReply reply = server.fetch_text(url, options.retries, kMaxPageBytes, text);
    if (reply.trouble != HttpTrouble::kNone || reply.status / 100 != 2) throw_refused(url, reply);
    int64_t rows = 0;
    total = append_page(text, url, have, lines, rows);
    if (rows == 0 && have < total) {
      throw_error(ErrorKind::kBadInput, url, ": no rows, although ", total - have, " are left");
    }
    have += rows;
    task.advance(rows);
  }
  if (have == 0) throw_error(ErrorKind::kBadInput, page_url(options.endpoint, split, 0), ": the split has no rows");
  return lines;
}

}  // namespace dynslice
