#include <type_traits>

#include "cuda/kernel_table.cuh"
#include "cuda/sequence_forward.cuh"

namespace mmvssm::cuda {

KernelHandle find_sequence_forward(const Kernel& id) {
  const bool carry = id.function == Function::kSequenceForwardCarry;
  return with_type(id.type, [&](auto* of) -> KernelHandle {
    if (carry) {
      MMVSSM_CASE(sequence_forward_carry_kernel, 1, 1)
      MMVSSM_CASE(sequence_forward_carry_kernel, 4, 1)
      MMVSSM_CASE(sequence_forward_carry_kernel, 8, 1)
      MMVSSM_CASE(sequence_forward_carry_kernel, 16, 1)
    } else {
      MMVSSM_CASE(sequence_forward_kernel, 1, 1)
      MMVSSM_CASE(sequence_forward_kernel, 4, 1)
      MMVSSM_CASE(sequence_forward_kernel, 8, 1)
      MMVSSM_CASE(sequence_forward_kernel, 16, 1)
    }
    return KernelHandle();
  });
}

}  // namespace mmvssm::cuda
