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
// Where there are too few tiles of queries for the GPU, each has a block for every part of its keys (Mask::part), and
// merge.cu makes one of the parts' results.
//
// Threads: 128, as core/simt_tile.cuh has them; a warp owns its rows of s, p and o from the first product to the store.
//
// Shared memory (bytes; float, Q_TILE = KV_TILE = 64):
//     0       q   9216    a chunk of features; read again for each tile of keys, from the cache
//     9216    k   9216    the same features
//     0       v  16384    a chunk of columns: takes the place of q and k when their products are done
//     0       room 16384  a chunk of the output on its way out, in a part for each thread
//     18432   p  17408    weights; written and read by one warp each row
//     35840   tile, head, values 288      what the block works on
//
// Pipeline: none within a block, so that any d fits; the blocks that share a multiprocessor hide each other's loads.
#include "attention/config.cuh"
#include "attention/online_softmax.cuh"
#include "attention/operands.cuh"

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
            A room[ROWS * Units::VEC][THREADS];
        };
        SimtTile<A, Q_TILE, KV_TILE> p;
        QueryTile tile;
        QueryHead<T> head;
        Matrix<T> values;
    };
    static constexpr int SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        const auto& problem = params.problem;
        Smem& smem = shared_map<Smem>();
        const QueryTile& tile = smem.tile;
        const QueryHead<T>& head = smem.head;
        const int part = blockIdx.x % params.parts;
        publish(smem.tile, [&] { return QueryTile::of<Q_TILE>(problem, blockIdx.x / params.parts); });
        if (!tile.exists) return;
        publish(smem.head, [&] {
            auto found = QueryHead<T>::of(problem, tile.span, tile.head);
            found.mask = found.mask.template part<KV_TILE>(part, params.part_keys, tile.q0);
            return found;
        });
        publish(smem.values, [&] { return values_of(problem, tile.span, tile.head); });
        const int q0 = tile.q0, q1 = least(q0 + Q_TILE, tile.span.lq);

        A o[CHUNKS][ROWS][Units::VEC] = {};
        OnlineSoftmax<A, ROWS> softmax;
        const Reals& sinks = problem.sinks;
        softmax.start();
        if (sinks.data != nullptr && part == 0)
            softmax.start(widen_any<A>(sinks.data, sinks.dtype, tile.head * sinks.strides.head), Units::x() == 0);

        const auto next = [&](int t) { return head.mask.template next_tile<KV_TILE>(t, q0, q1); };
        for (int t = next(0); t != Mask::NO_TILE; t = next(t + 1)) {
            const int kv0 = t * KV_TILE;
            A s[ROWS][KEYS] = {};
            Units::template multiply_abt<TWO_STEPS<CONFIG.dtype, CONFIG.value_dim>>(
                s, smem.q, head.q, q0, smem.k, head.k, kv0
            );
            score_visible(s, smem, head, q0, q1, kv0);

            A shrink[ROWS];
            softmax.step(s, shrink);
            Units::put(smem.p, s);
            add_values(o, shrink, smem, smem.values, kv0);
        }
        store(params, smem, o, softmax);
    }

    // Products become scores; what the mask hides, and rows and keys beyond the last, become -inf. Options other than
    // the scale and the window are applied in shared memory, where one loop serves all elements of a thread.
    static __device__ __forceinline__ void score_visible(
        A (&s)[ROWS][KEYS], Smem& smem, const QueryHead<T>& head, int q0, int q1, int kv0
    ) {
        const Score<A>& score = head.score;
        const Mask& mask = head.mask;
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
        A (&o)[CHUNKS][ROWS][Units::VEC], const A (&shrink)[ROWS], Smem& smem, const Matrix<T>& v, int kv0
    ) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            const int column = chunk * COLS;
            if (column >= v.cols) break;
            Units::load(smem.v, v, kv0, column);
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
        const Params& params, Smem& smem, A (&o)[CHUNKS][ROWS][Units::VEC], OnlineSoftmax<A, ROWS>& softmax
    ) {
        const QueryTile& tile = smem.tile;
        const Span& span = tile.span;
        const int rows = span.lq - tile.q0, dv = smem.values.cols;
        softmax.finish();
        if (params.lse != nullptr && Units::x() == 0) {
            const int64_t to = row_of(params.lse_strides, span.entry, tile.head, span.q_start + tile.q0) +
                               blockIdx.x % params.parts * params.lse_step;
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const int row = Units::y() * ROWS + r;
                if (row < rows) store_sum(params, to + row * params.lse_strides.row, softmax.row(r));
            }
        }
        if (params.out == nullptr && params.part_outs == nullptr) return;
        const Strides& os = params.out_strides;
        const int64_t to = row_of(os, span.entry, tile.head, span.q_start + tile.q0) +
                           blockIdx.x % params.parts * params.out_step;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
#pragma unroll
                for (int c = 0; c < Units::VEC; ++c)
                    if (params.part_outs == nullptr) o[chunk][r][c] = softmax.row(r).divide(o[chunk][r][c]);
            Units::for_each(o[chunk], smem.room, [&](int row, int col, A x) {
                col += chunk * COLS;
                if (row >= rows || col >= dv) return;
                const int64_t at = to + row * os.row + col * os.col;
                if (params.part_outs == nullptr) params.out[at] = narrow<T>(x);
                else params.part_outs[at] = x;
            });
        }
    }
};

}  // namespace cf
