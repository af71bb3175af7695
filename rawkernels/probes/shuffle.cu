// shuffle.cu -- probe of the warp's shuffles: from the lane that each lane names, and from the lane whose number
// differs in one bit.
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeShuffle {
    using A = Storage<CONFIG.dtype>;
    static constexpr int BITS = 5;
    struct Params {
        const A* x;             // [THREADS]
        const int32_t* lanes;   // [THREADS]; the last five bits count
        A* named;               // [THREADS]
        A* flipped;             // [BITS, THREADS]
    };
    static constexpr int THREADS = 128, BLOCKS_PER_SM = 1, SMEM_BYTES = 0;

    static __device__ void run(const Params& params) {
        const int i = threadIdx.x;
        const A x = params.x[i];
        params.named[i] = __shfl_sync(ALL_LANES, x, params.lanes[i]);
#pragma unroll
        for (int bit = 0; bit < BITS; ++bit)
            params.flipped[bit * THREADS + i] = __shfl_xor_sync(ALL_LANES, x, 1 << bit);
    }
};

}  // namespace cf
