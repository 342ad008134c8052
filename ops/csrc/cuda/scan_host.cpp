#include "cuda/scan_host.h"

namespace mmvssm::cuda {

const char* name_of(Function function) {
  switch (function) {
    case Function::kRouteForward:
      return "route_forward_kernel";
    case Function::kRouteForwardCarry:
      return "route_forward_carry_kernel";
    case Function::kRouteBackward:
      return "route_backward_kernel";
    case Function::kRouteBackwardCarry:
      return "route_backward_carry_kernel";
    case Function::kSequenceForward:
      return "sequence_forward_kernel";
    case Function::kSequenceForwardCarry:
      return "sequence_forward_carry_kernel";
    case Function::kSequenceBackward:
      return "sequence_backward_kernel";
    case Function::kSequenceBackwardCarry:
      return "sequence_backward_carry_kernel";
    case Function::kSumSlots:
      return "sum_slots_kernel";
    case Function::kSumPieces:
      return "sum_pieces_kernel";
    case Function::kFoldCarries:
      return "fold_carries_kernel";
    case Function::kLinkVisits:
      return "link_visits_kernel";
    case Function::kGatherRows:
      return "gather_rows_kernel";
    case Function::kGatherProjections:
      return "gather_projections_kernel";
  }
  return nullptr;
}

const char* name_of(DType type) {
  return type == DType::kFloat  ? "float"
         : type == DType::kHalf ? "__half"
                                : "__nv_bfloat16";
}

const char* header_of(Function function) {
  switch (function) {
    case Function::kRouteForward:
    case Function::kRouteForwardCarry:
      return "cuda/route_forward.cuh";
    case Function::kRouteBackward:
    case Function::kRouteBackwardCarry:
      return "cuda/route_backward.cuh";
    case Function::kSequenceForward:
    case Function::kSequenceForwardCarry:
      return "cuda/sequence_forward.cuh";
    case Function::kSequenceBackward:
    case Function::kSequenceBackwardCarry:
      return "cuda/sequence_backward.cuh";
    default:
      return "cuda/collect.cuh";
  }
}

namespace {

// Threads that share so much of which one does `own`: a power of two.
int shares_of(int64_t work, int own) {
  int shares = 1;
  while (shares < 16 && shares * own < work) shares *= 2;
  return shares;
}

}  // namespace

void fold_carries(Device& device, const ScanShape& s, bool backward) {
  const int shares = shares_of(s.num_carries - 1, kFoldedChunks);
  const FoldParams p{s.A,           s.carries,  s.batch,
                     s.num_routes,  s.channels, s.d_state,
                     s.num_carries, shares,     backward};
  const int64_t images = static_cast<int64_t>(s.batch) * s.num_routes;
  launch_collect(device, {Function::kFoldCarries, DType::kFloat, 1, 1},
                 images * s.d_state * s.channels, p, shares);
}

GatherItems gather_items(int64_t rows, int64_t across, int64_t packs,
                         int images) {
  GatherItems items{};
  items.rows = static_cast<int>(rows);
  items.across = static_cast<int>(across);
  items.packs = static_cast<int>(packs);
  items.images = images;
  items.image_blocks = static_cast<int>(
      (rows * across * packs + kCollectThreads - 1) / kCollectThreads);
  items.by_blocks = Divisor::of(items.image_blocks);
  items.by_packs = Divisor::of(items.packs);
  items.by_across = Divisor::of(items.across);
  return items;
}

void sum_slots(Device& device, const float* slots, void* out, DType out_type,
               int64_t outer, int64_t count, int64_t inner) {
  const SumParams p{slots, out, outer, count, inner};
  if (outer * inner == 0) return;
  const int width = inner % 4 != 0 ? 1 : 4;
  launch_collect(device, {Function::kSumSlots, out_type, width, 1},
                 outer * inner / width, p);
}

PieceSums::PieceSums(int64_t pieces, Device& device) : device_(device) {
  params_.pieces = pieces;
  params_.num_shares = shares_of(pieces, 8);
}

float* PieceSums::of(float* total, int64_t count) {
  if (total == nullptr || params_.pieces == 1) return total;
  float* shares = allocate_floats(device_, params_.pieces * count);
  params_.arrays[size_++] = {shares, total, count};
  return shares;
}

ParameterSums PieceSums::of(const ScanArgs& args) {
  const int64_t rows = args.num_routes * args.channels;
  return {of(args.dA, rows * args.d_state), of(args.dD, rows),
          of(args.dbias, rows)};
}

void PieceSums::add_up() const {
  int64_t sums = 0;
  for (const auto& array : params_.arrays) sums += array.count;
  if (sums == 0) return;
  launch_collect(device_, {Function::kSumPieces, DType::kFloat, 1, 1}, sums,
                 params_, params_.num_shares);
}

}  // namespace mmvssm::cuda
