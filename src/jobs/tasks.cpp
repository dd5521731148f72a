#include "jobs/tasks.h"

#include "dynslice/support/error.h"
#include "dynslice/support/log.h"

namespace dynslice {

TaskSelection tasks_named(const std::string& list) {
  std::vector<std::string> names;
  std::string rest = list + ",";
  for (size_t comma = rest.find(','); comma != std::string::npos; comma = rest.find(',')) {
    names.push_back(rest.substr(0, comma));
    rest.erase(0, comma + 1);
    if (names.back().empty()) throw_error(ErrorKind::kUsage, "--tasks ", list, ": has an empty name in it");
  }
  TaskSelection selection = select_tasks(names);
  for (const std::string& name : selection.repeated) log(LogLevel::kInfo, "--tasks names " + name + " twice; run once");
  return selection;
}

}  // namespace dynslice
