// The scan of sequences, as launches.
#include "cuda/scan_host.h"

namespace mmvssm::cuda {
namespace {

SequenceRows rows_of(const void* data, DType type) {
  return {const_cast<void*>(data), type == DType::kFloat};
}

SequenceInputs inputs_of(const Scan1dArgs& args) {
  return {rows_of(args.u, args.in_type), rows_of(args.delta, args.in_type),
          args.B, args.C, args.softplus};
}

}  // namespace

bool scan_1d_forward(const Scan1dArgs& args, Device& device) {
  SequenceForwardParams p{};
  Cut cut;
  const auto lay_out = [&](Cut& cut) {
    SharedArena arena;
    p.layout.lay_out(cut.padded_states(), cut.threads, false, arena);
    cut.carry_bytes = cut.shared_bytes = arena.bytes();
  };
  if (!choose_cut(args, device, false, false, lay_out, cut)) return false;
  p.shape = scan_shape(args, cut, device);
  p.inputs = inputs_of(args);
  p.y = rows_of(args.y, args.y_type);
  p.last_state = args.last_state;
  launch_scan(device, args, cut, Function::kSequenceForwardCarry,
              Function::kSequenceForward, p);
  return true;
}

bool scan_1d_backward(const Scan1dArgs& args, Device& device) {
  SequenceBackwardParams p{};
  Cut cut;
  const auto lay_out = [&](Cut& cut) {
    SharedArena arena;
    p.layout.lay_out(cut.padded_states(), cut.threads, true, arena);
    cut.carry_bytes = arena.bytes();
    p.backward.lay_out(cut.states, cut.lane_channels, cut.padded_states(),
                       cut.threads, arena);
    cut.shared_bytes = arena.bytes();
  };
  if (!choose_cut(args, device, true, false, lay_out, cut)) return false;
  PieceSums piece_sums(args.batch * cut.chunks, device);
  p.shape = scan_shape(args, cut, device);
  p.shape.marks = allocate_marks(args, cut, device);
  p.inputs = inputs_of(args);
  p.sums = piece_sums.of(args);
  p.dy = rows_of(args.dy, args.y_type);
  p.du = rows_of(args.du, args.in_type);
  p.ddelta = rows_of(args.ddelta, args.in_type);
  // Parts of the channels write dB and dC apart from each other.
  p.part_stride = args.batch * args.num_routes * args.d_state * args.length;
  const bool whole = cut.parts == 1 && args.in_type == DType::kFloat;
  p.dB = whole ? static_cast<float*>(args.dB)
               : allocate_floats(device, cut.parts * p.part_stride);
  p.dC = whole ? static_cast<float*>(args.dC)
               : allocate_floats(device, cut.parts * p.part_stride);
  launch_scan(device, args, cut, Function::kSequenceBackwardCarry,
              Function::kSequenceBackward, p);
  if (!whole) {
    sum_slots(device, p.dB, args.dB, args.in_type, 1, cut.parts, p.part_stride);
    sum_slots(device, p.dC, args.dC, args.in_type, 1, cut.parts, p.part_stride);
  }
  piece_sums.add_up();
  return true;
}

}  // namespace mmvssm::cuda
