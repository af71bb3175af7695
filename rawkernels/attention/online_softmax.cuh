// online_softmax.cuh -- softmax(s) @ v over tiles of keys that come one after another (Milakov and Gimelshein 2018,
// arXiv:1805.02867; as in FlashAttention-2, arXiv:2307.08691, algorithm 1). A row that has seen no key has max = -inf
// and sum = 0 (row_sum.cuh).
#pragma once
#include "row_sum.cuh"

namespace cf {

// State of the R rows of a thread. `sum` is over the thread's own columns until `finish`. `Units` say which lanes share
// rows: those whose numbers differ in the bits from FIRST_SHARER on, below END_SHARER.
template <typename A, int R, typename Units = Simt<A>> struct OnlineSoftmax {
    A max[R], sum[R];
    A lost[R];  // by roundings of `sum`: many small weights beside a 1 would vanish one by one

    __device__ __forceinline__ void start() {
#pragma unroll
        for (int r = 0; r < R; ++r) { max[r] = -infinity<A>(); sum[r] = lost[r] = 0; }
    }
    // Begins with a logit that carries no value; `owner` is true for one of the threads that share a row.
    __device__ __forceinline__ void start(A sink, bool owner) {
#pragma unroll
        for (int r = 0; r < R; ++r) start_row(r, sink, owner);
    }
    __device__ __forceinline__ void start_row(int r, A sink, bool owner) {
        max[r] = sink;
        sum[r] = owner && sink != -infinity<A>() ? 1 : 0;
        lost[r] = 0;
    }

    // Scores become weights exp(s - max) in place; shrink[r] is what earlier results of row r are to be multiplied by.
    template <int C> __device__ __forceinline__ void step(A (&s)[R][C], A (&shrink)[R]) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
            A tile_max = s[r][0];
#pragma unroll
            for (int c = 1; c < C; ++c) tile_max = largest(tile_max, s[r][c]);
            const A row_max = largest(max[r], Units::row_max(tile_max));
            const A base = finite(row_max);
            shrink[r] = exp_of(max[r] - base);
            max[r] = row_max;
            sum[r] *= shrink[r];
            lost[r] *= shrink[r];
            A tile_sum = 0;
#pragma unroll
            for (int c = 0; c < C; ++c) tile_sum += s[r][c] = exp_of(s[r][c] - base);
            add(r, tile_sum);
        }
    }

    // Adds up the rows' sums.
    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int r = 0; r < R; ++r) {
#pragma unroll
            for (int lane = Units::FIRST_SHARER; lane < Units::END_SHARER; lane *= 2) {
                const A other = __shfl_xor_sync(ALL_LANES, sum[r], lane);
                lost[r] += __shfl_xor_sync(ALL_LANES, lost[r], lane);
                add(r, other);
            }
            sum[r] += lost[r];
        }
    }
    // What is left of a row after that.
    __device__ __forceinline__ RowSum<A> row(int r) const { return {max[r], sum[r]}; }

  private:
    // Stands in for the maximum where there is none, so that -inf is never subtracted from -inf.
    static __device__ __forceinline__ A finite(A row_max) { return row_max == -infinity<A>() ? A(0) : row_max; }

    // sum += x; what the rounding takes away goes to `lost` (Knuth's two-sum).
    __device__ __forceinline__ void add(int r, A x) {
        const A total = sum[r] + x, part = total - sum[r];
        lost[r] += (sum[r] - (total - part)) + (x - part);
        sum[r] = total;
    }
};

}  // namespace cf
