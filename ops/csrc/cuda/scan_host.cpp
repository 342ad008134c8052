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

void fold_carries(Device& device, const ScanShape& s, bool backward) {
  const FoldParams p{s.A,        s.carries, s.batch,  s.num_routes,
                     s.channels, s.d_state, s.chunks, backward};
  const int64_t images = static_cast<int64_t>(s.batch) * s.num_routes;
  launch_collect(device, {Function::kFoldCarries, DType::kFloat, 1, 1},
                 images * s.d_state * s.channels, p);
}

void sum_slots(Device& device, const float* slots, void* out, DType out_type,
               int64_t outer, int64_t count, int64_t inner) {
  const SumParams p{slots, out, outer, count, inner};
  if (outer * inner == 0) return;
  // Few and long sums are shared by the lanes of a warp.
  const bool shared = count >= 16 && outer * inner <= 16384;
  const int width = shared || inner % 4 != 0 ? 1 : 4;
  launch_collect(device,
                 {Function::kSumSlots, out_type, width, shared ? 32 : 1},
                 outer * inner / width * (shared ? 32 : 1), p);
}

float* PieceSums::of(float* total, int64_t count) {
  if (total == nullptr || pieces_ == 1) return total;
  float* shares = allocate_floats(device_, pieces_ * count);
  items_[size_++] = {shares, total, count};
  return shares;
}

ParameterSums PieceSums::of(const ScanArgs& args) {
  const int64_t rows = args.num_routes * args.channels;
  return {of(args.dA, rows * args.d_state), of(args.dD, rows),
          of(args.dbias, rows)};
}

void PieceSums::add_up() const {
  for (int i = 0; i < size_; ++i) {
    sum_slots(device_, items_[i].shares, items_[i].total, DType::kFloat, 1,
              pieces_, items_[i].count);
  }
}

}  // namespace mmvssm::cuda
