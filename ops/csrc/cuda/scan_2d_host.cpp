// The scan along routes, as launches.
#include "cuda/scan_host.h"

namespace mmvssm::cuda {
namespace {

RouteInputs inputs_of(const Scan2dArgs& args) {
  const int64_t width = args.dt_rank + 2 * args.d_state;
  const int64_t x_width =
      (args.x_per_route ? args.num_routes : 1) * args.channels;
  const int64_t x_dbl_width =
      (args.shared_projection ? 1 : args.num_routes) * width;
  const auto bytes_of = [&](int64_t columns) {
    return static_cast<uintptr_t>(columns * element_bytes(args.in_type));
  };
  uintptr_t alignment =
      reinterpret_cast<uintptr_t>(args.x_dbl) | bytes_of(width);
  if (args.in_type == DType::kFloat) {
    alignment |= bytes_of(args.dt_rank) | bytes_of(args.d_state);
  }
  RouteInputs in{};
  in.x = args.x;
  in.x_dbl = args.x_dbl;
  in.routes = args.routes;
  in.out_routes = args.out_routes;
  in.dt_weight = args.dt_weight;
  in.x_batch_stride = args.pixels * x_width;
  in.x_dbl_batch_stride = args.pixels * x_dbl_width;
  in.x_route_stride = static_cast<int>(args.x_per_route ? args.channels : 0);
  in.x_pixel_stride = static_cast<int>(x_width);
  in.x_dbl_route_stride = static_cast<int>(args.shared_projection ? 0 : width);
  in.x_dbl_pixel_stride = static_cast<int>(x_dbl_width);
  in.dt_rank = static_cast<int>(args.dt_rank);
  in.copy_bytes = alignment % 16 == 0  ? 16
                  : alignment % 8 == 0 ? 8
                  : alignment % 4 == 0 ? 4
                                       : 0;
  return in;
}

// Whether a tile of the dt rank, as float32 rows, is not too large by itself.
// Its arrays are laid out, and counted in 32 bits, only then.
bool rank_may_fit(const Scan2dArgs& args, const Device& device) {
  return args.dt_rank * kTile * static_cast<int64_t>(sizeof(float)) <=
         device.shared_limit;
}

Visits link_visits(const Scan2dArgs& args, const int32_t* table, int64_t rows,
                   bool repeats, Device& device) {
  // Side by side, so that one fill empties all lists.
  const int64_t heads = args.num_routes * rows;
  const int64_t links = args.num_routes * args.length;
  const int64_t bytes =
      (heads + (repeats ? links : 0)) * static_cast<int64_t>(sizeof(int32_t));
  auto* lists = static_cast<int32_t*>(device.allocate(bytes));
  device.fill(lists, 0xff, bytes);
  const VisitParams p{table,
                      {lists, repeats ? lists + heads : nullptr},
                      static_cast<int>(args.num_routes),
                      static_cast<int>(args.length),
                      static_cast<int>(rows)};
  launch_collect(device, {Function::kLinkVisits, DType::kFloat, 1, 1}, links,
                 p);
  return p.visits;
}

// A result with rows of D channels that the routes write: y along out_routes,
// dx along routes, (Bt, rows, D) or (Bt, rows, K, D) where routes are `apart`.
// - Routes that no two of share a row, and that come to a row once, write to
//   the result itself.
// - Routes that visit every row once write float32 slots, a slot each in the
//   order of the rows, which are then added up.
// - Otherwise they write float32 rows in the order of their steps, and each row
//   of the result collects those that visited it. So nothing is read back, and
//   chunks of a sequence that meet in a row do not interfere.
class RoutedRows {
 public:
  RoutedRows(const Scan2dArgs& args, const RouteWrites& writes, bool apart,
             const int32_t* table, int64_t num_rows, void* total, DType type,
             Device& device)
      : args_(args),
        apart_(apart),
        table_(table),
        num_rows_(num_rows),
        total_(total),
        type_(type),
        device_(device) {
    repeats_ = writes.repeats;
    direct_ = writes.exclusive && !repeats_;
    by_step_ = !direct_ && writes.cleared();
    const int64_t across = apart ? args.num_routes : 1;
    if (direct_) {
      rows_.data = total;
      rows_.is_float = type == DType::kFloat;
      rows_.row_stride = static_cast<int>(across * args.channels);
      rows_.route_stride = apart ? args.channels : 0;
      rows_.batch_stride = num_rows * across * args.channels;
      if (writes.gaps) {
        device.fill(total, 0,
                    args.batch * rows_.batch_stride * element_bytes(type));
      }
      return;
    }
    slot_ = (by_step_ ? args.length : num_rows) * args.channels;
    rows_.data = allocate_floats(device, args.batch * args.num_routes * slot_);
    rows_.is_float = true;
    rows_.by_step = by_step_;
    rows_.row_stride = static_cast<int>(args.channels);
    rows_.route_stride = slot_;
    rows_.batch_stride = args.num_routes * slot_;
  }

  const RouteRows& rows() const { return rows_; }

  // After the scan. `visits` are those of the table, or null.
  void finish(const Visits* visits) const {
    if (direct_) return;
    const auto* slots = static_cast<const float*>(rows_.data);
    if (!by_step_) {
      sum_slots(device_, slots, total_, type_, args_.batch, args_.num_routes,
                slot_);
      return;
    }
    GatherParams p{};
    p.steps = slots;
    p.out = total_;
    p.visits = visits
                   ? *visits
                   : link_visits(args_, table_, num_rows_, repeats_, device_);
    const int width = args_.channels % 4 == 0 ? 4 : 1;
    p.items = gather_items(num_rows_, apart_ ? args_.num_routes : 1,
                           args_.channels / width, 1);
    p.num_routes = static_cast<int>(args_.num_routes);
    p.length = static_cast<int>(args_.length);
    launch_gather(device_, {Function::kGatherRows, type_, width, 1},
                  args_.batch, p);
  }

 private:
  const Scan2dArgs& args_;
  bool apart_, repeats_, direct_, by_step_;
  const int32_t* table_;
  int64_t num_rows_, slot_ = 0;
  void* total_;
  DType type_;
  Device& device_;
  RouteRows rows_{};
};

// The gradient of the dt rank, a product of d_raw_step (K, Bt, L, D) and the
// step weights, and with it and those of B and C the gradient of x_dbl.
void finish_projection(const Scan2dArgs& args, const Cut& cut,
                       const RouteBackwardParams& p, const Visits& visits,
                       Device& device) {
  const int64_t steps = args.batch * args.length;
  float* dt_grads =
      allocate_floats(device, args.num_routes * steps * args.dt_rank);
  device.multiply({p.d_raw_step, args.dt_weight, dt_grads, args.num_routes,
                   steps, args.channels, args.dt_rank});

  ProjectionParams projection{};
  projection.dt_grads = dt_grads;
  projection.map_grads = p.map_grads;
  projection.out = args.dx_dbl;
  projection.visits = visits;
  // Columns and images of a thread.
  const int columns = args.d_state == 1 ? 2 : 8;
  const int images = args.d_state == 1 ? 4 : 2;
  const auto packs_of = [&](int64_t width) {
    return (width + columns - 1) / columns;
  };
  projection.rank_packs = static_cast<int>(packs_of(args.dt_rank));
  projection.items =
      gather_items(args.pixels, args.shared_projection ? 1 : args.num_routes,
                   projection.rank_packs + packs_of(2 * args.d_state), images);
  projection.batch = static_cast<int>(args.batch);
  projection.num_routes = static_cast<int>(args.num_routes);
  projection.length = static_cast<int>(args.length);
  projection.dt_rank = static_cast<int>(args.dt_rank);
  projection.d_state = static_cast<int>(args.d_state);
  projection.padded_states = cut.padded_states();
  projection.parts = cut.parts;
  launch_gather(device,
                {Function::kGatherProjections, args.in_type, columns, images},
                args.batch, projection);
}

}  // namespace

bool scan_2d_forward(const Scan2dArgs& args, Device& device) {
  if (!rank_may_fit(args, device)) return false;
  RouteForwardParams p{};
  p.inputs = inputs_of(args);
  Cut cut;
  const auto lay_out = [&](Cut& cut) {
    SharedArena arena;
    p.layout.lay_out(static_cast<int>(args.dt_rank),
                     static_cast<int>(args.d_state), cut.padded_states(),
                     element_bytes(args.in_type), p.inputs.copy_bytes, false,
                     cut.threads, cut.lane_channels, arena);
    cut.carry_bytes = cut.shared_bytes = arena.bytes();
  };
  if (!choose_cut(args, device, false, true, lay_out, cut)) return false;
  const bool apart = !args.merge || args.num_routes == 1;
  const RoutedRows y(args, out_writes(args.facts, apart), apart,
                     args.out_routes, args.out_rows, args.y, args.y_type,
                     device);
  p.shape = scan_shape(args, cut, device);
  p.y = y.rows();
  launch_scan(device, args, cut, Function::kRouteForwardCarry,
              Function::kRouteForward, p);
  y.finish(nullptr);
  return true;
}

bool scan_2d_backward(const Scan2dArgs& args, Device& device) {
  if (!rank_may_fit(args, device)) return false;
  RouteBackwardParams p{};
  p.inputs = inputs_of(args);
  Cut cut;
  const auto lay_out = [&](Cut& cut) {
    SharedArena arena;
    p.layout.lay_out(static_cast<int>(args.dt_rank),
                     static_cast<int>(args.d_state), cut.padded_states(),
                     element_bytes(args.in_type), p.inputs.copy_bytes, true,
                     cut.threads, cut.lane_channels, arena);
    cut.carry_bytes = arena.bytes();
    p.backward.lay_out(cut.states, cut.lane_channels, cut.padded_states(),
                       cut.threads, arena);
    cut.shared_bytes = arena.bytes();
  };
  if (!choose_cut(args, device, true, true, lay_out, cut)) return false;
  const bool apart = args.x_per_route || args.num_routes == 1;
  const RouteWrites reads = read_writes(args.facts, apart);
  const RoutedRows dx(args, reads, apart, args.routes, args.pixels, args.dx,
                      args.in_type, device);
  PieceSums piece_sums(args.batch * cut.chunks, device);
  p.shape = scan_shape(args, cut, device);
  p.shape.marks = allocate_marks(args, cut, device);
  p.sums = piece_sums.of(args);
  p.ddt_weight = piece_sums.of(args.ddt_weight,
                               args.num_routes * args.channels * args.dt_rank);
  const int64_t dy_row = (args.merge ? 1 : args.num_routes) * args.channels;
  p.dy.data = const_cast<void*>(args.dy);
  p.dy.is_float = args.y_type == DType::kFloat;
  p.dy.row_stride = static_cast<int>(dy_row);
  p.dy.batch_stride = args.out_rows * dy_row;
  p.dy.route_stride = args.merge ? 0 : args.channels;
  p.dx = dx.rows();
  const int64_t steps = args.num_routes * args.batch * args.length;
  p.d_raw_step = allocate_floats(device, steps * args.channels);
  p.part_stride = steps * 2 * cut.padded_states();
  p.map_grads = allocate_floats(device, cut.parts * p.part_stride);
  launch_scan(device, args, cut, Function::kRouteBackwardCarry,
              Function::kRouteBackward, p);

  const Visits visits =
      link_visits(args, args.routes, args.pixels, reads.repeats, device);
  finish_projection(args, cut, p, visits, device);
  piece_sums.add_up();
  dx.finish(&visits);
  return true;
}

}  // namespace mmvssm::cuda
