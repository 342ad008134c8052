// What the host functions of both forms share.
#pragma once

#include "cuda/scan_rules.h"

namespace mmvssm::cuda {

template <typename Params>
void launch(Device& device, const Kernel& kernel, int64_t blocks, int threads,
            int shared_bytes, const Params& params) {
  device.launch({kernel, blocks, threads, shared_bytes, &params,
                 static_cast<int>(sizeof(Params))});
}

// The kernels of collect.cuh: one thread an item, or some that share one.
template <typename Params>
void launch_collect(Device& device, const Kernel& kernel, int64_t items,
                    const Params& params, int shares = 1) {
  const int of_block = kCollectThreads / shares;
  launch(device, kernel, (items + of_block - 1) / of_block, kCollectThreads, 0,
         params);
}

inline float* allocate_floats(Device& device, int64_t count) {
  return static_cast<float*>(
      device.allocate(count * static_cast<int64_t>(sizeof(float))));
}

inline int element_bytes(DType type) { return type == DType::kFloat ? 4 : 2; }

inline ScanShape scan_shape(const ScanArgs& args, const Cut& cut,
                            Device& device) {
  ScanShape s{};
  s.batch = static_cast<int>(args.batch);
  s.num_routes = static_cast<int>(args.num_routes);
  s.channels = static_cast<int>(args.channels);
  s.d_state = static_cast<int>(args.d_state);
  s.length = static_cast<int>(args.length);
  s.parts = cut.parts;
  s.chunks = cut.chunks;
  s.by_parts = Divisor::of(s.parts);
  s.by_chunks = Divisor::of(s.chunks);
  s.by_routes = Divisor::of(s.num_routes);
  s.chunk_tiles = cut.chunk_tiles;
  s.carry_split = cut.carry_split;
  s.num_carries = cut.num_carries;
  s.state_lanes = cut.state_lanes;
  s.A = args.A;
  s.D = args.D;
  s.bias = args.bias;
  s.states = args.states;
  if (cut.chunks > 1) {
    s.carries =
        allocate_floats(device, args.batch * args.num_routes * cut.num_carries *
                                    (1 + args.d_state) * args.channels);
  }
  return s;
}

// Where the states of a backward scan wait, see scan_backward_quads.cuh.
inline float* allocate_marks(const ScanArgs& args, const Cut& cut,
                             Device& device) {
  if (cut.states != 16) return nullptr;
  return allocate_floats(
      device, cut.blocks(args) * cut.threads * (kTile / kSub + 1) * cut.states);
}

void fold_carries(Device& device, const ScanShape& s, bool backward);

// Where the sequence is cut, the carry pass and what folds the carries; and the
// main pass.
template <typename Params>
void launch_scan(Device& device, const ScanArgs& args, const Cut& cut,
                 Function carry, Function main, const Params& params) {
  const auto pass = [&](Function function, const Params& params,
                        int shared_bytes) {
    const int64_t blocks =
        args.batch * args.num_routes * cut.parts * params.shape.chunks;
    launch(device, {function, args.in_type, cut.states, cut.lane_channels},
           blocks, cut.threads, shared_bytes, params);
  };
  if (cut.chunks > 1) {
    Params split = params;
    split.shape.chunks = cut.num_carries;
    split.shape.by_chunks = Divisor::of(cut.num_carries);
    split.shape.chunk_tiles /= cut.carry_split;
    pass(carry, split, cut.carry_bytes);
    fold_carries(device, params.shape,
                 carry == Function::kRouteBackwardCarry ||
                     carry == Function::kSequenceBackwardCarry);
  }
  pass(main, params, cut.shared_bytes);
}

GatherItems gather_items(int64_t rows, int64_t across, int64_t packs,
                         int images);

template <typename Params>
void launch_gather(Device& device, const Kernel& kernel, int64_t batch,
                   const Params& params) {
  const int images = params.items.images;
  launch(device, kernel,
         (batch + images - 1) / images * params.items.image_blocks,
         kCollectThreads, 0, params);
}

// out[o][i] = sum over c of slots[o][c][i]; both arrays are aligned to 16
// bytes.
void sum_slots(Device& device, const float* slots, void* out, DType out_type,
               int64_t outer, int64_t count, int64_t inner);

// Gradients of parameters, which blocks leave one of for each batch and chunk.
class PieceSums {
 public:
  PieceSums(int64_t pieces, Device& device);

  // Where kernels write (pieces, count) shares of `total`; null stays null.
  float* of(float* total, int64_t count);
  ParameterSums of(const ScanArgs& args);
  void add_up() const;

 private:
  Device& device_;
  PieceParams params_{};
  int size_ = 0;
};

}  // namespace mmvssm::cuda
