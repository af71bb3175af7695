// merge.cu -- attention over the union of disjoint sets of keys, from the results over each:
//
//     lse = log(sum_p exp(lse_p)),   out = sum_p exp(lse_p - lse) out_p
//
// A part that saw no key of a row, lse_p = -inf, adds nothing to it, whatever its out_p holds. Where none saw any, out
// is 0 and lse -inf. Parts of one forward pass come with the two numbers of a RowSum in place of an lse.
//
// Walk: a warp owns a row of the output and walks the parts in their order (attention/split.cuh). Threads: 128.
#include "attention/cache_params.cuh"
#include "attention/span.cuh"
#include "attention/split.cuh"

namespace cf {

struct MergeConfig {
    Dtype dtype;    // of the result
    Dtype parts;    // and of the parts' outputs
};

template <MergeConfig CONFIG> struct Merge {
    using T = Storage<CONFIG.dtype>;
    using Part = Storage<CONFIG.parts>;
    using A = Acc<T>;
    using Params = MergeParams<T, Part>;
    static constexpr int THREADS = 128, BLOCKS_PER_SM = 1, SMEM_BYTES = 0;

    static __device__ void run(const Params& params) {
        int64_t index = int64_t(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
        const int row = int(index % params.rows);
        index /= params.rows;
        const int head = int(index % params.heads);
        index /= params.heads;
        if (index >= params.entries) return;
        const BatchEntry entry = BatchEntry::of(index, params.batch);
        const auto at = [&](const Strides& strides) { return offset_of(strides, entry, head) + row * strides.row; };

        T* out = params.out + at(params.out_strides);
        const RowSum<A> all = merge_row<A>(
            params.parts, params.dv,
            [&](int part) {
                const MergePart<Part>& from = params.given[part % params.arrays];
                const A* lse = from.lse + part / params.arrays * params.lse_step + at(from.lse_strides);
                return RowSum<A>{lse[0], params.sums ? lse[1] : A(1)};
            },
            [&](int part, int col) {
                const MergePart<Part>& from = params.given[part % params.arrays];
                const int64_t first = part / params.arrays * params.out_step + at(from.out_strides);
                return widen(from.out[first + col * from.out_strides.col]);
            },
            [&](int col, A number, const RowSum<A>& sum) {
                out[col * params.out_strides.col] = narrow<T>(sum.divide(number));
            }
        );
        if (params.lse != nullptr && threadIdx.x % WARP == 0) params.lse[at(params.lse_strides)] = all.lse();
    }
};

}  // namespace cf
