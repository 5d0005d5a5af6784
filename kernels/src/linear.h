// What the parts of a linear layer of one pixel share. Its matrix is packed for a vector: each step multiplies one quad of the
// input, the same in all lanes, by its weights in sixteen rows.
#pragma once

#include "conv.h"

namespace dp {

constexpr int kLinearRows = 16;

struct alignas(DP_ALIGN) LinearStep {
  int8_t weights[kLinearRows][DP_QUAD];
};

struct PackedLinear {
  std::vector<int32_t> blocks;   // first step of each sixteen rows, and the end
  std::vector<int32_t> from;     // of each step: bytes into the input
  std::vector<LinearStep> steps; // those of a block that have a weight
  std::vector<float> scale;      // padded to whole blocks
  std::vector<int32_t> bias;
};

} // namespace dp
