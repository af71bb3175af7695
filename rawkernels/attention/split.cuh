// split.cuh -- keys cut into parts that blocks of their own work on: which part a block owns, and how the results of
// the parts become one. Parts depend on what a tile of queries sees and on nothing else, and they are merged in their
// order, so neither the batch nor the room of a cache nor the GPU has a say in the bits.
#pragma once
#include "row_sum.cuh"

namespace cf {

// Keys begin ... end - 1, one part of those that a tile of queries sees.
struct KeyPart {
    int begin, end, count;  // count: parts of the tile, at least 1, so that a tile that sees nothing has an owner
    bool exists;            // blocks are there for as many parts as any tile can have

    // Part `index` of the keys first ... stop - 1: cut every `part_keys`, or into `splits` parts if that is not 0, of
    // which none is empty. More keys never make fewer parts: those of a tile are among those of its sequence.
    static __device__ __forceinline__ KeyPart of(int index, int first, int stop, int part_keys, int splits) {
        const int64_t keys = largest(0, stop - first);
        const int most = splits == 0 ? int(ceil_div<int64_t>(keys, part_keys)) : int(least<int64_t>(splits, keys));
        const int count = largest(1, most);
        const auto cut = [&](int64_t part) {
            return first + int(least(keys, splits == 0 ? part * part_keys : part * keys / count));
        };
        return {cut(index), cut(int64_t(index) + 1), count, index < count};
    }
};

// By the threads of one warp together: attention of one query over the union of `parts` disjoint sets of keys, from
// what is left of each,
//
//     max = max_p max_p,   sum = sum_p exp(max_p - max) sum_p,   out = sum_p exp(max_p - max) out_p,
//
// summed in the order of the parts. Of a part that is known by its finished output and its lse, these are out_p and
// max_p, and sum_p is 1. What a part without any weight holds is not looked at. sum_of(part) and out_of(part, col) are
// asked in the arithmetic's type; put(col, number, sum) takes each of the `dv` columns, to be divided by the sum, which
// is also returned.
template <typename A, typename SumOf, typename OutOf, typename Put>
__device__ __forceinline__ RowSum<A> merge_row(int parts, int dv, SumOf sum_of, OutOf out_of, Put put) {
    constexpr int LANE_COLS = 4;    // columns of a lane that share a weight
    const int lane = threadIdx.x % WARP;
    A top = -infinity<A>();
    for (int part = lane; part < parts; part += WARP) top = largest(top, sum_of(part).max);
#pragma unroll
    for (int other = 1; other < WARP; other *= 2) top = largest(top, __shfl_xor_sync(ALL_LANES, top, other));
    const A base = top == -infinity<A>() ? A(0) : top;

    A total = 0;
    int col0 = lane;
    do {
        A sum[LANE_COLS] = {};
        total = 0;
        for (int part0 = 0; part0 < parts; part0 += WARP) {
            const auto [own_max, own_sum] = part0 + lane < parts ? sum_of(part0 + lane) : RowSum<A>{-infinity<A>(), 0};
            const A own = exp_of(own_max - base), share = own * own_sum;
            const int count = least(WARP, parts - part0);
#pragma unroll 4
            for (int i = 0; i < count; ++i) {
                const A weight = __shfl_sync(ALL_LANES, own, i);
                total += __shfl_sync(ALL_LANES, share, i);
#pragma unroll
                for (int c = 0; c < LANE_COLS; ++c) {
                    const int col = col0 + c * WARP;
                    if (col < dv && weight != A(0)) sum[c] += weight * out_of(part0 + i, col);
                }
            }
        }
#pragma unroll
        for (int c = 0; c < LANE_COLS; ++c) {
            const int col = col0 + c * WARP;
            if (col < dv) put(col, sum[c], RowSum<A>{top, total});
        }
        col0 += LANE_COLS * WARP;
    } while (col0 - lane < dv);
    return {top, total};
}

}  // namespace cf
