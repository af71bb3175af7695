// ticket.cuh -- "the last block finishes": blocks that work on parts of one result agree on who of them puts it
// together, without a second launch. This is the one place where blocks of a launch meet. Nobody waits, so it does not
// matter how many of them run at once, or in which order.
//
// Why the last block may read what the others have written, and why the counter is ready for the next launch:
//
//     block i    writes its part          block of the last arrival
//                __syncthreads  (1)
//                thread 0: atom_add (2) -> thread 0: atom_add, gets `arrivals` - 1   (3)
//                                          thread 0: counter = 0                     (4)
//                                          __syncthreads                             (5)
//                                          all threads read the parts
//
// (1) orders what all threads of a block have done before the addition of its thread 0. The addition releases at the
// scope of the device, which covers what came before it by way of the barrier; it acquires too, and all additions to a
// counter form one chain, so the last, (3), follows every (2), and with it every part. (5) passes that on to the
// threads of the last block: they see what the others have written, and may overwrite what the others have read. Each
// of `arrivals` blocks adds once, so exactly one gets `arrivals` - 1, and nobody touches the counter after it: (4) is
// alone, and whatever runs later on the stream finds 0. A counter starts as 0 once, when the workspace is made.
#pragma once
#include "ptx.cuh"

namespace cf {

// Whether this block is the last of `arrivals` to come here. All its threads call, and all get the same answer;
// `before` is a word of shared memory that nothing else uses.
__device__ __forceinline__ bool arrives_last(uint32_t* counter, uint32_t arrivals, uint32_t& before) {
    __syncthreads();    // all that this block has done comes before the addition, and before what the last one does
    if (arrivals == 1) return true;
    if (threadIdx.x == 0) {
        before = ptx::atom_add_acq_rel_gpu(counter, 1);
        if (before == arrivals - 1) *counter = 0;
    }
    __syncthreads();    // the addition, and the answer, come before all that this block reads
    return before == arrivals - 1;
}

}  // namespace cf
