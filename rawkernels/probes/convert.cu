// convert.cu -- probe of core/convert.cuh: both directions, with the dtype known when compiling and when running.
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeConvert {
    using T = Storage<CONFIG.dtype>;
    using A = Acc<T>;
    struct Params {
        const T* stored;    // [count]
        const A* numbers;   // [count]
        A *widened, *widened_any;   // [count], of stored
        T *narrowed, *narrowed_any; // [count], of numbers
        int64_t count;
    };
    static constexpr int THREADS = 128, BLOCKS_PER_SM = 1, SMEM_BYTES = 0;

    static __device__ void run(const Params& params) {
        const int64_t i = thread_of_grid();
        if (i >= params.count) return;
        params.widened[i] = widen(params.stored[i]);
        params.narrowed[i] = narrow<T>(params.numbers[i]);
        params.widened_any[i] = widen_any<A>(params.stored, CONFIG.dtype, i);
        narrow_any(params.narrowed_any, CONFIG.dtype, i, params.numbers[i]);
    }
};

}  // namespace cf
