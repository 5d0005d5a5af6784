// Which of NEON's int8 products this CPU has, as Linux says.
#pragma once

#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace dp {
namespace {

// Bits of AT_HWCAP and AT_HWCAP2, by their numbers, as headers of older systems lack the names.
[[maybe_unused]] bool has_dot_product() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) >> 20 & 1; // HWCAP_ASIMDDP
#else
  return false;
#endif
}

[[maybe_unused]] bool has_matrix_product() {
#if defined(__linux__)
  return has_dot_product() && getauxval(AT_HWCAP2) >> 13 & 1; // HWCAP2_I8MM
#else
  return false;
#endif
}

} // namespace
} // namespace dp
