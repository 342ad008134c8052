#include <type_traits>

#include "cuda/collect.cuh"
#include "cuda/kernel_table.cuh"

namespace mmvssm::cuda {

KernelHandle find_collect(const Kernel& id) {
  return with_type(id.type, [&](auto* of) -> KernelHandle {
    switch (id.function) {
      case Function::kSumSlots:
        MMVSSM_CASE(sum_slots_kernel, 1, 1)
        MMVSSM_CASE(sum_slots_kernel, 4, 1)
        break;
      case Function::kSumPieces:
        MMVSSM_CASE(sum_pieces_kernel, 1, 1)
        break;
      case Function::kFoldCarries:
        MMVSSM_CASE(fold_carries_kernel, 1, 1)
        break;
      case Function::kLinkVisits:
        MMVSSM_CASE(link_visits_kernel, 1, 1)
        break;
      case Function::kGatherRows:
        MMVSSM_CASE(gather_rows_kernel, 1, 1)
        MMVSSM_CASE(gather_rows_kernel, 4, 1)
        break;
      case Function::kGatherProjections:
        MMVSSM_CASE(gather_projections_kernel, 2, 4)
        MMVSSM_CASE(gather_projections_kernel, 8, 2)
        break;
      default:
        break;
    }
    return KernelHandle();
  });
}

}  // namespace mmvssm::cuda
