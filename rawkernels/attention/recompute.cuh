// recompute.cuh -- the weights of a tile of queries and keys, and the gradients of its scores, computed again from the
// operands and the lse in place of being kept (FlashAttention-2, arXiv:2307.08691, algorithm 2).
//
//     p = exp(s - lse)        s = score(q @ k^T) where the mask shows it; 0 elsewhere, and where lse is -inf
//     ds = p * (dp - delta)   dp = dout @ v^T,   delta = sum(dout * out) - dlse
#pragma once
#include "config.cuh"
#include "operands.cuh"

namespace cf {

// What the weights of one query head of a sequence follow from.
template <typename T> struct WeightsHead : QueryHead<T> {
    const Acc<T>* lse;  // of query 0
    int64_t lse_stride;

    static __device__ __forceinline__ WeightsHead of(
        const Attention<T>& problem, const Acc<T>* lse, const Strides& strides, const Span& span, int head
    ) {
        return {
            QueryHead<T>::of(problem, span, head), lse + row_of(strides, span.entry, head, span.q_start), strides.row,
        };
    }
};

// And the gradients of its scores.
template <typename T> struct GradientHead : WeightsHead<T> {
    Matrix<T> dout, v;
    const Acc<T>* delta;    // of query 0
    int64_t delta_stride;

    static __device__ __forceinline__ GradientHead of(const Backward<T>& given, const Span& span, int head) {
        return {
            WeightsHead<T>::of(given.problem, given.lse, given.lse_strides, span, head),
            queries_of(given.dout, given.dout_strides, span, head, given.problem.dv),
            values_of(given.problem, span, head),
            given.delta + row_of(given.delta_strides, span.entry, head, span.q_start), given.delta_strides.row,
        };
    }
};

// One tile of queries with one tile of keys, in a kernel that keeps COLUMNS columns of a gradient. Every function is
// called by all threads of the block.
template <Dtype DTYPE, int COLUMNS, int Q_TILE, int KV_TILE> struct Recompute {
    using T = Storage<DTYPE>;
    using A = Acc<T>;
    using Units = Simt<A>;
    static constexpr int DEPTH = 8 * Units::VEC;
    static constexpr int ROWS = Q_TILE / Units::ROW_THREADS, KEYS = KV_TILE / Units::COL_THREADS;   // of a thread
    static_assert(Q_TILE <= Units::THREADS, "one thread brings each row's numbers");

    // Chunks of features: free for other uses between calls.
    struct Chunks {
        SimtTile<A, Q_TILE, DEPTH> rows;    // of q or dout
        SimtTile<A, KV_TILE, DEPTH> keys;   // of k or v
    };
    // The result, each element of which is read and written by one thread alone until a barrier.
    struct Pairs {
        SimtTile<A, Q_TILE, KV_TILE> tile;
        A lse[Q_TILE], delta[Q_TILE];
    };

    // The rows' numbers of the queries from q0 on. A row that has seen no key, or does not exist, gets lse inf: all its
    // weights are exp(-inf) = 0.
    static __device__ __forceinline__ void load_lse(Pairs& pairs, const WeightsHead<T>& head, int q0) {
        const int i = threadIdx.x;
        if (i >= Q_TILE) return;
        const A lse = q0 + i < head.q.rows ? in_global(head.lse)[(q0 + i) * head.lse_stride] : -infinity<A>();
        pairs.lse[i] = lse == -infinity<A>() ? infinity<A>() : lse;
    }
    static __device__ __forceinline__ void load_rows(Pairs& pairs, const GradientHead<T>& head, int q0) {
        __syncthreads();    // all have read the numbers of the tile before
        load_lse(pairs, head, q0);
        const int i = threadIdx.x;
        if (i < Q_TILE)
            pairs.delta[i] = q0 + i < head.q.rows ? in_global(head.delta)[(q0 + i) * head.delta_stride] : A(0);
        __syncthreads();    // those of this one are complete
    }

    // pairs.tile = p; times d score / d (scale * product) if `bent`.
    static __device__ __forceinline__ void weights(
        Pairs& pairs, Chunks& chunks, const WeightsHead<T>& head, int q0, int kv0, bool bent
    ) {
        A s[ROWS][KEYS] = {};
        Units::template multiply_abt<TWO_STEPS<DTYPE, COLUMNS>>(s, chunks.rows, head.q, q0, chunks.keys, head.k, kv0);
        if (head.score.plain() && head.mask.array == nullptr) {
            weigh_plain(s, pairs, head, q0, kv0);
            Units::put(pairs.tile, s);
        } else {
            Units::put(pairs.tile, s);
            weigh(pairs, head, q0, kv0, bent);
        }
    }

    // Products become weights where the scores are no more than scaled and only a window hides some.
    static __device__ __forceinline__ void weigh_plain(
        A (&s)[ROWS][KEYS], const Pairs& pairs, const WeightsHead<T>& head, int q0, int kv0
    ) {
        const A scale = head.score.scale;
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int c = 0; c < KEYS; ++c)
                s[r][c] = exp_of(rounded_product(s[r][c], scale) - pairs.lse[Units::y() * ROWS + r]);
        const int q1 = least(q0 + Q_TILE, head.q.rows);
        if (q1 - q0 == Q_TILE && !head.mask.cuts(q0, q1, kv0, kv0 + KV_TILE)) return;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int row = q0 + Units::y() * ROWS + r;
            const int first = head.mask.first(row), end = row < q1 ? head.mask.end(row) : 0;
#pragma unroll
            for (int c = 0; c < KEYS; ++c) {
                const int key = kv0 + Units::x() + Units::COL_THREADS * c;
                if (key < first || key >= end) s[r][c] = 0;
            }
        }
    }

    // The same with every option, in shared memory, where one loop serves all rows of a thread.
    static __device__ __forceinline__ void weigh(
        Pairs& pairs, const WeightsHead<T>& head, int q0, int kv0, bool bent
    ) {
#pragma unroll 1
        for (int r = 0; r < ROWS; ++r) {
            const int i = Units::y() * ROWS + r, row = q0 + i;
            const int first = head.mask.first(row), end = row < head.q.rows ? head.mask.end(row) : 0;
#pragma unroll
            for (int c = 0; c < KEYS; ++c) {
                const int col = Units::x() + Units::COL_THREADS * c, key = kv0 + col;
                A& element = pairs.tile.at(i, col);
                A weight = 0, bend;
                if (key >= first && key < end && head.mask.shows(row, key)) {
                    weight = exp_of(head.score(element, row, key, bend) - pairs.lse[i]);
                    if (bent) weight *= bend;
                }
                element = weight;
            }
        }
    }

    // ds = pairs.tile * (dp - delta), of each thread's own elements: once `weights` has been called for the same tile.
    static __device__ __forceinline__ void gradients(
        A (&ds)[ROWS][KEYS], Pairs& pairs, Chunks& chunks, const GradientHead<T>& head, int q0, int kv0
    ) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int c = 0; c < KEYS; ++c) ds[r][c] = 0;
        Units::template multiply_abt<TWO_STEPS<DTYPE, COLUMNS>>(
            ds, chunks.rows, head.dout, q0, chunks.keys, head.v, kv0
        );
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int i = Units::y() * ROWS + r;
#pragma unroll
            for (int c = 0; c < KEYS; ++c)
                ds[r][c] = pairs.tile.at(i, Units::x() + Units::COL_THREADS * c) * (ds[r][c] - pairs.delta[i]);
        }
    }
};

}  // namespace cf
