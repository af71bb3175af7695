// row_reduce.cu -- probe of Simt::row_max and Simt::row_sum: over the 16 threads that share rows, in the order that
// their shuffles give.
#include "../core/simt_tile.cuh"
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeRowReduce {
    using A = Storage<CONFIG.dtype>;
    using Units = Simt<A>;
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = 1, SMEM_BYTES = 0;
    struct Params {
        const A* x;         // [blocks, THREADS]
        A *max, *sum;       // [blocks, THREADS]: the same for all threads of a row
    };

    static __device__ void run(const Params& params) {
        const int64_t i = thread_of_grid();
        params.max[i] = Units::row_max(params.x[i]);
        params.sum[i] = Units::row_sum(params.x[i]);
    }
};

}  // namespace cf
