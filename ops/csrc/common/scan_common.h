// Facts shared by every kernel and by the host code; plain C++, no torch.
#pragma once

#include <cstdint>

namespace mmvssm {

// Steps between two saved states: the backward pass recomputes the forward
// recurrence from the state saved at the start of each chunk.
constexpr int kChunk = 64;

// Saved states of one sequence: the state *entering* chunks 1, 2, ... (chunk 0
// starts from zero), as a float32 (float64) tensor (Bt, K, S, N, D).
constexpr int64_t num_saved_states(int64_t length) {
  return (length - 1) / kChunk;
}

// softplus(x) is x itself above this threshold, and its derivative 1.
constexpr float kSoftplusThreshold = 20.0f;

enum class DType : int32_t { kFloat, kHalf, kBFloat16, kDouble };

}  // namespace mmvssm
