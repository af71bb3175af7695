// atom_add.cu -- probe of ptx::atom_add_acq_rel_gpu: every thread of every block draws a number that no other has.
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeAtomAdd {
    struct Params {
        uint32_t* counter;  // [1]
        int32_t* drawn;     // [threads of all blocks]: how often each number was drawn
    };
    static constexpr int THREADS = 128, BLOCKS_PER_SM = 1, SMEM_BYTES = 0;

    static __device__ void run(const Params& params) {
        const uint32_t number = ptx::atom_add_acq_rel_gpu(params.counter, 3) / 3;
        params.drawn[number] += 1;
    }
};

}  // namespace cf
