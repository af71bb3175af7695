// ex2.cu -- probe of ptx::ex2.
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeEx2 {
    struct Params {
        const float* x;     // [count]
        float* y;           // [count]
        int64_t count;
    };
    static constexpr int THREADS = 128, BLOCKS_PER_SM = 1, SMEM_BYTES = 0;

    static __device__ void run(const Params& params) {
        const int64_t i = thread_of_grid();
        if (i < params.count) params.y[i] = ptx::ex2(params.x[i]);
    }
};

}  // namespace cf
