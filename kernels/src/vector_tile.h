// Which loops a tile goes through, on every target with vector registers. The header that includes this defines `shared_pass`, for one
// to kPass registers of pixels, and `sparse_block`, for one to kWidest vectors and rows alone or paired; hence the unnamed namespace.
#pragma once

#include <utility>

#include "conv.h"

namespace dp {
namespace {

// Tiles of sparse rows are as wide as was planned, or one vector narrower.
template <bool kPaired, int V, bool kSwish, bool kResidual>
void sparse_rows(const Tile& tile, int first) {
  if (tile.packed->together == rows_for(V, kPaired))
    sparse_block<kPaired, rows_for(V, kPaired), V, kSwish, kResidual>(tile, first);
  else
    sparse_block<kPaired, rows_for(V < kWidest ? V + 1 : V, kPaired), V, kSwish, kResidual>(tile, first);
}

template <bool kPaired, bool kSwish, bool kResidual, int... V>
void run_sparse(const Tile& tile, std::integer_sequence<int, V...>) {
  using Rows = void (*)(const Tile&, int);
  static constexpr Rows rows[] = {sparse_rows<kPaired, V + 1, kSwish, kResidual>...};
  for (int first = tile.first; first < tile.last; first += kBlockQuads) rows[tile.vectors - 1](tile, first);
}

// Tiles of shared rows may be of any width.
template <bool kSwish, bool kResidual, int... N>
void run_shared(const Tile& tile, std::integer_sequence<int, N...>) {
  using Pass = void (*)(const Tile&, int);
  static constexpr Pass passes[] = {shared_pass<N + 1, kSwish, kResidual>...};
  const int all = tile.vectors * kRegisters, pieces = (all + kPass - 1) / kPass;
  for (int piece = 0; piece < pieces; ++piece) {
    const int begin = begin_of(all, piece, pieces), end = begin_of(all, piece + 1, pieces);
    passes[end - begin - 1](tile, begin);
  }
}

template <bool kSwish, bool kResidual>
void run(const Tile& tile) {
  constexpr auto widths = std::make_integer_sequence<int, kWidest>();
  if (tile.packed->is_shared) return run_shared<kSwish, kResidual>(tile, std::make_integer_sequence<int, kPass>());
  if (tile.packed->is_paired) return run_sparse<true, kSwish, kResidual>(tile, widths);
  run_sparse<false, kSwish, kResidual>(tile, widths);
}

void tile(const Tile& tile) {
  const bool swish = tile.epilogue->has_swish();
  if (tile.residual) return swish ? run<true, true>(tile) : run<false, true>(tile);
  return swish ? run<true, false>(tile) : run<false, false>(tile);
}

} // namespace
} // namespace dp
