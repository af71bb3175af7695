// bwd_sinks.cu -- the gradient of the sinks, which are keys without a value:
//
//     dsinks = -sum of exp(sink - lse) * delta over all rows of a head, in all batch entries
//
// Tile walk: a block owns a head; each thread adds up every 128th of its rows.
// Threads: 128. The threads' sums are added in a fixed order: 16 neighbours by shuffles, then the eight results.
// Shared memory: those eight. Limits: none.
#include "attention/config.cuh"
#include "attention/span.cuh"

namespace cf {

template <ElementConfig CONFIG> struct BwdSinks {
    using T = Storage<CONFIG.dtype>;
    using A = Acc<T>;
    using Units = Simt<A>;
    using Params = BwdSinksParams<T>;
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = 1;

    struct Smem { A sums[Units::ROW_THREADS]; };
    static constexpr int SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        Smem& smem = shared_map<Smem>();
        const int head = blockIdx.x;
        const A sink = widen_any<A>(params.sinks.data, params.sinks.dtype, head * params.sinks.strides.head);
        int64_t rows = params.rows;
#pragma unroll
        for (int axis = 0; axis < BATCH_AXES; ++axis) rows *= params.batch[axis];

        A sum = 0;
        for (int64_t i = threadIdx.x; i < rows; i += THREADS) {
            const int64_t row = i % params.rows;
            const BatchEntry entry = BatchEntry::of(i / params.rows, params.batch);
            const A lse = params.lse[offset_of(params.lse_strides, entry, head) + row * params.lse_strides.row];
            const A delta = params.delta[offset_of(params.delta_strides, entry, head) + row * params.delta_strides.row];
            if (lse != -infinity<A>()) sum -= exp_of(sink - lse) * delta;
        }
        sum = Units::row_sum(sum);
        if (Units::x() == 0) smem.sums[Units::y()] = sum;
        __syncthreads();    // the sums are complete
        if (threadIdx.x != 0) return;
        A total = 0;
        for (int i = 0; i < Units::ROW_THREADS; ++i) total += smem.sums[i];
        narrow_any(params.dsinks.data, params.dsinks.dtype, head * params.dsinks.strides.head, total);
    }
};

}  // namespace cf
