// functions.cu -- probe of exp, log and tanh as core/simt_tile.cuh offers them.
#include "../core/simt_tile.cuh"
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeFunctions {
    using A = Storage<CONFIG.dtype>;
    struct Params {
        const A* x;     // [count]
        A *exp, *log, *tanh;    // [count]
        int64_t count;
    };
    static constexpr int THREADS = 128, BLOCKS_PER_SM = 1, SMEM_BYTES = 0;

    static __device__ void run(const Params& params) {
        const int64_t i = thread_of_grid();
        if (i >= params.count) return;
        params.exp[i] = exp_of(params.x[i]);
        params.log[i] = log_of(params.x[i]);
        params.tanh[i] = tanh_of(params.x[i]);
    }
};

}  // namespace cf
