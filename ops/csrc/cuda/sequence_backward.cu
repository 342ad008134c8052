#include <type_traits>

#include "cuda/kernel_table.cuh"
#include "cuda/sequence_backward.cuh"

namespace mmvssm::cuda {

KernelHandle find_sequence_backward(const Kernel& id) {
  const bool carry = id.function == Function::kSequenceBackwardCarry;
  return with_type(id.type, [&](auto* of) -> KernelHandle {
    if (carry) {
      MMVSSM_CASE(sequence_backward_carry_kernel, 1, 1)
      MMVSSM_CASE(sequence_backward_carry_kernel, 4, 1)
      MMVSSM_CASE(sequence_backward_carry_kernel, 8, 1)
    } else {
      MMVSSM_CASE(sequence_backward_kernel, 1, 1)
      MMVSSM_CASE(sequence_backward_kernel, 4, 1)
      MMVSSM_CASE(sequence_backward_kernel, 8, 1)
    }
    return KernelHandle();
  });
}

}  // namespace mmvssm::cuda
