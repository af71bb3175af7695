// bwd_prepare.cu -- the number that each row of queries contributes to the gradients of its scores:
//
//     delta = sum(dout * out) - dlse
//
// Tile walk: a block owns 32 rows, counted over all heads and batch entries, in four steps of eight.
// Threads: 128, as core/simt_tile.cuh has them; the 16 threads of a row read neighbouring columns.
// Shared memory: none. Limits: none.
#include "attention/config.cuh"
#include "attention/span.cuh"

namespace cf {

template <ElementConfig CONFIG> struct BwdPrepare {
    using T = Storage<CONFIG.dtype>;
    using A = Acc<T>;
    using Units = Simt<A>;
    using Params = BwdPrepareParams<T>;
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = 1, SMEM_BYTES = 0;
    static constexpr int STEPS = 4;

    static __device__ void run(const Params& params) {
        for (int step = 0; step < STEPS; ++step)
            add_row(params, (int64_t(blockIdx.x) * STEPS + step) * Units::ROW_THREADS + Units::y());
    }

    static __device__ __forceinline__ void add_row(const Params& params, int64_t index) {
        const int64_t row = index % params.rows;
        index /= params.rows;
        const int head = int(index % params.heads);
        index /= params.heads;
        const BatchEntry entry = BatchEntry::of(index, params.batch);
        const auto at = [&](const Strides& strides) { return offset_of(strides, entry, head) + row * strides.row; };

        int64_t entries = 1;
#pragma unroll
        for (int axis = 0; axis < BATCH_AXES; ++axis) entries *= params.batch[axis];
        const bool exists = index < entries;    // threads without a row take part in the sums of the others
        const T *dout = params.dout + at(params.dout_strides), *out = params.out + at(params.out_strides);
        A sum = 0;
        if (exists)
            for (int col = Units::x(); col < params.dv; col += Units::COL_THREADS)
                sum += widen(dout[col * params.dout_strides.col]) * widen(out[col * params.out_strides.col]);
        sum = Units::row_sum(sum);
        if (!exists || Units::x() != 0) return;
        if (params.dlse != nullptr) sum -= params.dlse[at(params.dlse_strides)];
        params.delta[at(params.delta_strides)] = sum;
    }
};

}  // namespace cf
