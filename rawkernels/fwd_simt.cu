// fwd_simt.cu -- attention forward on the plain arithmetic units: every dtype, every option, any d, dv up to value_dim.
//
//     out = softmax(s) @ v,   lse = log(sum(exp(s))),   s = score(q @ k^T) where the mask shows it, else -inf
//
// Tile walk: a block owns Q_TILE queries of one head and walks the tiles of keys that some of them see.
//
//     keys ->    tile 0    tile 1     ...     last that the mask shows
//     queries  [ s -> p ][ s -> p ]   ...  [   ]      s = q @ k^T       summed over chunks of DEPTH features
//                 |          |                        o = o * shrink + p @ v, in chunks of COLS columns
//
// Threads: 128, as core/simt_tile.cuh has them; a warp owns its rows of s, p and o from the first product to the store.
//
// Shared memory (bytes; float, Q_TILE = KV_TILE = 64):
//     0       q   9216    a chunk of features; read again for each tile of keys, from the cache
//     9216    k   9216    the same features
//     0       v  16384    a chunk of columns: takes the place of q and k when their products are done
//     18432   p  17408    weights; written and read by one warp each row
//
// Pipeline: none within a block, so that any d fits; the blocks that share a multiprocessor hide each other's loads.
#include "attention/config.cuh"
#include "attention/mask.cuh"
#include "attention/online_softmax.cuh"
#include "attention/score.cuh"

namespace cf {

template <SimtConfig CONFIG> struct FwdSimt {
    using T = Storage<CONFIG.dtype>;
    using A = Acc<T>;
    using Units = Simt<A>;
    using Params = FwdParams<T>;
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = CONFIG.blocks;
    static constexpr int Q_TILE = CONFIG.q_tile, KV_TILE = CONFIG.kv_tile, DEPTH = 8 * Units::VEC, COLS = Units::COLS;
    static constexpr int ROWS = Q_TILE / Units::ROW_THREADS, KEYS = KV_TILE / Units::COL_THREADS;   // of a thread
    static constexpr int CHUNKS = CONFIG.value_dim / COLS;
    static_assert(CONFIG.value_dim % COLS == 0, "the output is kept in whole chunks");

    struct Smem {
        union {
            struct {
                SimtTile<A, Q_TILE, DEPTH> q;
                SimtTile<A, KV_TILE, DEPTH> k;
            };
            SimtTile<A, KV_TILE, COLS, 0> v;
        };
        SimtTile<A, Q_TILE, KV_TILE> p;
    };
    static constexpr int SMEM_BYTES = sizeof(Smem);

    // The rows of arrays that a block works on.
    struct Operands {
        const T *q, *k, *v;     // query q0, key 0 and value 0 of the sequence
        int rows, lk;           // queries of the tile, real keys
    };

    static __device__ void run(const Params& params) {
        const auto& problem = params.problem;
        const auto tile = QueryTile::of<Q_TILE>(problem, blockIdx.x);
        if (!tile.exists) return;
        const Span& span = tile.span;
        const int q0 = tile.q0, q1 = least(q0 + Q_TILE, span.lq);
        const Operands operands = find(problem, tile, q1 - q0);
        const Mask mask = Mask::of(problem, span, tile.head);
        const auto score = Score<A>::of(problem, span, tile.head);
        Smem& smem = shared_map<Smem>();

        A o[CHUNKS][ROWS][Units::VEC] = {};
        OnlineSoftmax<A, ROWS> softmax;
        const Reals& sinks = problem.sinks;
        softmax.start();
        if (sinks.data != nullptr)
            softmax.start(widen_any<A>(sinks.data, sinks.dtype, tile.head * sinks.strides.head), Units::x() == 0);

        for (int t = mask.next_tile<KV_TILE>(0, q0, q1); t != Mask::NO_TILE;
             t = mask.next_tile<KV_TILE>(t + 1, q0, q1)) {
            const int kv0 = t * KV_TILE;
            A s[ROWS][KEYS] = {};
            multiply_keys(s, smem, problem, operands, kv0);
            score_visible(s, smem, score, mask, q0, q1, kv0);

            A shrink[ROWS];
            softmax.step(s, shrink);
            Units::put(smem.p, s);
            add_values(o, shrink, smem, problem, operands, kv0);
        }
        store(params, tile, q1, o, softmax);
    }

    static __device__ __forceinline__ Operands find(const Attention<T>& problem, const QueryTile& tile, int rows) {
        const Span& span = tile.span;
        const int kv_head = tile.head / problem.group;
        return {
            problem.q + offset_of(problem.q_strides, span.entry, tile.head) +
                (span.q_start + tile.q0) * problem.q_strides.row,
            problem.k + offset_of(problem.k_strides, span.entry, kv_head) + span.kv_start * problem.k_strides.row,
            problem.v + offset_of(problem.v_strides, span.entry, kv_head) + span.kv_start * problem.v_strides.row,
            rows, span.kv_length,
        };
    }

    // s += q @ k^T for the keys from kv0 on.
    static __device__ __forceinline__ void multiply_keys(
        A (&s)[ROWS][KEYS], Smem& smem, const Attention<T>& problem, const Operands& operands, int kv0
    ) {
        const Strides &qs = problem.q_strides, &ks = problem.k_strides;
        const T* k = operands.k + kv0 * ks.row;
#pragma unroll 1
        for (int d0 = 0; d0 < problem.d; d0 += DEPTH) {
            Units::load(smem.q, operands.q + d0 * qs.col, qs.row, qs.col, operands.rows, problem.d - d0);
            Units::load(smem.k, k + d0 * ks.col, ks.row, ks.col, operands.lk - kv0, problem.d - d0);
            __syncthreads();    // the chunk is complete
            Units::mma_abt(s, smem.q, smem.k);
            __syncthreads();    // all have read it: the next chunk, or v, may take its place
        }
    }

    // Products become scores; what the mask hides, and rows and keys beyond the last, become -inf. Options other than
    // the scale and the window are applied in shared memory, where one loop serves all elements of a thread.
    static __device__ __forceinline__ void score_visible(
        A (&s)[ROWS][KEYS], Smem& smem, const Score<A>& score, const Mask& mask, int q0, int q1, int kv0
    ) {
        const int row0 = q0 + Units::y() * ROWS, key0 = kv0 + Units::x();
        if (score.plain() && mask.array == nullptr) {
            Units::scale(s, score.scale);
        } else {
            Units::put(smem.p, s);
#pragma unroll 1
            for (int i = 0; i < ROWS * KEYS; ++i) {
                const int row = row0 + i / KEYS, key = key0 + i % KEYS * Units::COL_THREADS;
                A& element = smem.p.at(row - q0, key - kv0);
                const bool visible = row < q1 && key >= mask.first(row) && key < mask.end(row) && mask.shows(row, key);
                element = visible ? score(element, row, key) : -infinity<A>();
            }
            Units::get(s, smem.p);
        }
        if (q1 - q0 == Q_TILE && !mask.cuts(q0, q1, kv0, kv0 + KV_TILE)) return;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int first = mask.first(row0 + r), end = row0 + r < q1 ? mask.end(row0 + r) : 0;
#pragma unroll
            for (int c = 0; c < KEYS; ++c) {
                const int key = key0 + Units::COL_THREADS * c;
                if (key < first || key >= end) s[r][c] = -infinity<A>();
            }
        }
    }

    // o = o * shrink + p @ v for the keys from kv0 on.
    static __device__ __forceinline__ void add_values(
        A (&o)[CHUNKS][ROWS][Units::VEC], const A (&shrink)[ROWS], Smem& smem, const Attention<T>& problem,
        const Operands& operands, int kv0
    ) {
        const Strides& vs = problem.v_strides;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            const int column = chunk * COLS;
            if (column >= problem.dv) break;
            Units::load(smem.v, operands.v + kv0 * vs.row + column * vs.col, vs.row, vs.col, operands.lk - kv0,
                        problem.dv - column);
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
#pragma unroll
                for (int c = 0; c < Units::VEC; ++c) o[chunk][r][c] *= shrink[r];
            __syncthreads();    // the chunk of v, and the rows of p of each warp, are complete
            Units::mma_ab(o[chunk], smem.p, smem.v);
            __syncthreads();    // all have read v: the next chunk, or q and k, may take its place
        }
    }

    static __device__ __forceinline__ void store(
        const Params& params, const QueryTile& tile, int q1, const A (&o)[CHUNKS][ROWS][Units::VEC],
        OnlineSoftmax<A, ROWS>& softmax
    ) {
        const Span& span = tile.span;
        A lse[ROWS];
        softmax.finish(lse);
        const Strides &os = params.out_strides, &ls = params.lse_strides;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int row = tile.q0 + Units::y() * ROWS + r;
            if (row >= q1) continue;
            const int64_t at = span.q_start + row;
            if (params.lse != nullptr && Units::x() == 0) {
                const int64_t to = offset_of(ls, span.entry, tile.head) + at * ls.row;
                params.lse[to] = params.sum == nullptr ? lse[r] : softmax.max[r];
                if (params.sum != nullptr) params.sum[to] = softmax.sum[r];
            }
            if (params.out == nullptr) continue;
            T* out = params.out + offset_of(os, span.entry, tile.head) + at * os.row;
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
                for (int c = 0; c < Units::VEC; ++c) {
                    const int col = chunk * COLS + Units::x() * Units::VEC + c;
                    if (col < params.problem.dv) out[col * os.col] = narrow<T>(softmax.normalise(o[chunk][r][c], r));
                }
        }
    }
};

}  // namespace cf
