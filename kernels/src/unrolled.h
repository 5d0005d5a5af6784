// Loops without a loop.
#pragma once

#include <utility>

namespace dp {
namespace {

#define DP_INLINE __attribute__((always_inline))

// f(0), f(1) ... f(N - 1), each a constant: what a loop indexes, the compiler may keep in memory instead of registers.
template <class F, int... I>
[[gnu::always_inline]] inline void unrolled_over(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
[[gnu::always_inline]] inline void unrolled(F&& f) {
  unrolled_over(f, std::make_integer_sequence<int, N>());
}

} // namespace
} // namespace dp
