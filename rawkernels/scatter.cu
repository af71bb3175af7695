// scatter.cu -- a few integers to places anywhere in the device's memory, handed over in the launch itself: so the host
// changes lengths and page tables in the order of the stream, and no copy of them has to stay until it is read.
//
//     *at[i] = values[i],   i < count;   no place twice
//
// Walk: one block, a thread for each integer. Shared memory: none.
#include "attention/cache_params.cuh"

namespace cf {

struct ScatterConfig { int places; };

template <ScatterConfig CONFIG> struct Scatter {
    using Params = ScatterParams;
    static constexpr int THREADS = CONFIG.places, BLOCKS_PER_SM = 1, SMEM_BYTES = 0;
    static_assert(CONFIG.places == PLACES, "a thread for each place");

    static __device__ void run(const Params& params) {
        const int i = threadIdx.x;
        if (i < params.count) *params.at[i] = params.values[i];
    }
};

}  // namespace cf
