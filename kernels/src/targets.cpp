// Which targets there are, and which one runs.
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "conv.h"

namespace dp {

// targets.inc is written by sources.cmake: TARGET(name) for each target of this build, best last.
#define TARGET(name) Target name##_target();
#include "targets.inc"
#undef TARGET

const std::vector<Target>& targets() {
  static const std::vector<Target> all = {
#define TARGET(name) name##_target(),
#include "targets.inc"
#undef TARGET
  };
  return all;
}

const Target& choose_target(const char* name) {
  const bool asked = name && *name;
  if (!asked) name = std::getenv("DEPLOYPRUNER_TARGET");
  std::string has;
  const Target* best = nullptr;
  for (const Target& target : targets()) {
    if (!target.runs()) continue;
    has += (has.empty() ? "" : ", ") + std::string(target.name);
    best = &target;
    if (name && !std::strcmp(name, target.name)) return target;
  }
  if (!name || !*name) return *best;
  throw std::runtime_error((asked ? "target '" : "DEPLOYPRUNER_TARGET is '") + std::string(name) + "'; this CPU has " + has);
}

} // namespace dp

extern "C" const char* dp_target_name(int32_t i) {
  return i >= 0 && size_t(i) < dp::targets().size() ? dp::targets()[i].name : nullptr;
}

extern "C" int dp_target_runs(int32_t i) {
  return i >= 0 && size_t(i) < dp::targets().size() && dp::targets()[i].runs();
}
