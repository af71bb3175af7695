// decode_simt.cu -- attention of the newest tokens of each sequence over a cache, on the plain arithmetic units: every
// dtype, codes, both kinds of cache, every option, any d, dv up to value_dim.
//
//     out = softmax(s) @ v,   lse = log(sum(exp(s))),   s = score(q @ k^T) where the query sees the key, else -inf
//
// Query i of a sequence stands at position length - lq + i; at a negative one it sees nothing.
//
// Tile walk: the rows of a tile are queries of all heads that share a key/value head, token by token (row = i * group +
// head of the group), so that a key is read once for all of them. The keys that a tile sees are cut into parts; a block
// owns a tile and a part, and walks the part in tiles of keys as fwd_simt does.
//
//     keys ->   hidden by a window | part 0              | part 1              | part 2   | room of the cache
//     rows                         [ t0 ][ t1 ][ t2 ][ t3 ]                                  <- one block
//                                                        [ t0 ][ t1 ][ t2 ][ t3 ]            <- one block
//                                                                              [ t0 ][ ]     <- one block
//                                                                                            <- leaves at once
//
// A tile with one part is finished by its block. Else each block writes what is left of its part to the workspace, and
// the last to arrive (core/ticket.cuh) merges them in their order (attention/split.cuh), a row to a warp.
//
// Threads: 128, as core/simt_tile.cuh has them; a warp owns its rows of s, p and o until the parts are merged.
//
// Shared memory (bytes; float, Q_TILE = 8, KV_TILE = 64): as in fwd_simt
//     0       q      1152     a chunk of features         |  v  16384, a chunk of columns, when their products are done
//     1152    k      9216     the same features           |
//     16384   p      2176     weights; written and read by one warp each row
//     18560   q_at     64     where each row of q starts; written once
//     18624   tokens 1024     where each key and value of the tile of keys starts (and 512 of scales, of codes)
//     19648   before   16     core/ticket.cuh's word
#include "attention/config.cuh"
#include "attention/decode_work.cuh"
#include "attention/online_softmax.cuh"
#include "attention/score.cuh"

namespace cf {

struct DecodeConfig {
    Dtype dtype;    // of the queries, and of the cache unless it keeps codes
    Codes codes;
    int value_dim;  // columns of the output that a block keeps in registers: dv, rounded up
    int q_tile, kv_tile;
    int blocks;     // that a multiprocessor is to hold
};

template <DecodeConfig CONFIG> struct DecodeSimt {
    using T = Storage<CONFIG.dtype>;
    using Stored = typename StoredAs<T, CONFIG.codes>::type;
    using A = Acc<T>;
    using Units = Simt<A>;
    using Params = DecodeParams<T, Stored>;
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = CONFIG.blocks;
    static constexpr int Q_TILE = CONFIG.q_tile, KV_TILE = CONFIG.kv_tile, DEPTH = 8 * Units::VEC, COLS = Units::COLS;
    static constexpr int ROWS = Q_TILE / Units::ROW_THREADS, KEYS = KV_TILE / Units::COL_THREADS;   // of a thread
    static constexpr int CHUNKS = CONFIG.value_dim / COLS;
    static_assert(CONFIG.value_dim % COLS == 0, "the output is kept in whole chunks");
    static_assert(KV_TILE <= THREADS, "a thread finds one token of a tile");

    struct Smem {
        union {
            struct {
                SimtTile<A, Q_TILE, DEPTH> q;
                SimtTile<A, KV_TILE, DEPTH> k;
            };
            SimtTile<A, KV_TILE, COLS, 0> v;
        };
        SimtTile<A, Q_TILE, KV_TILE> p;
        int64_t q_at[Q_TILE];
        TokenTile<Stored, KV_TILE> tokens;
        uint32_t before;
    };
    static constexpr int SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        DecodeItems<Q_TILE, Params>::of().for_each(params, [&](const DecodeWork& work) { attend(params, work); });
    }

    static __device__ __forceinline__ void attend(const Params& params, const DecodeWork& work) {
        Smem& smem = shared_map<Smem>();
        if (threadIdx.x < Q_TILE) {
            const int row = work.row0 + threadIdx.x;
            smem.q_at[threadIdx.x] = row < work.row1 ? work.row_of(params.q_strides, row) : ABSENT;
        }

        A o[CHUNKS][ROWS][Units::VEC] = {};
        OnlineSoftmax<A, ROWS> softmax;
        softmax.start();
        if (params.sinks.data != nullptr && work.part == 0) start_with_sinks(softmax, params.sinks, work);
        for (int kv0 = work.keys.begin; kv0 < work.keys.end; kv0 += KV_TILE) {
            find_tokens(smem.tokens, params.cache, work.sequence, work.kv_head, kv0, work.keys.end);
            __syncthreads();    // the places of queries and tokens are known
            A s[ROWS][KEYS] = {};
            multiply_keys(s, smem, params);
            score_visible(s, smem, params, work, kv0);

            A shrink[ROWS];
            softmax.step(s, shrink);
            if constexpr (TokenTile<Stored, KV_TILE>::CODES) scale_columns(s, smem.tokens.v_scale);
            Units::put(smem.p, s);
            add_values(o, shrink, smem, params);
        }
        store(params, work, o, softmax);
        if (work.merges(params, smem.before)) merge_parts<THREADS / WARP>(params, work);
    }

    static __device__ __forceinline__ void start_with_sinks(
        OnlineSoftmax<A, ROWS>& softmax, const Reals& sinks, const DecodeWork& work
    ) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int row = work.row0 + Units::y() * ROWS + r;
            if (row >= work.row1) continue;
            softmax.start_row(r, widen_any<A>(sinks.data, sinks.dtype, work.head(row) * sinks.strides.head),
                              Units::x() == 0);
        }
    }

    // s += q @ k^T for a tile of keys; codes count as the numbers they stand for.
    static __device__ __forceinline__ void multiply_keys(A (&s)[ROWS][KEYS], Smem& smem, const Params& params) {
        const int64_t q_col = params.q_strides.col, k_col = params.cache.k_strides.col;
#pragma unroll 1
        for (int d0 = 0; d0 < params.d; d0 += DEPTH) {
            load_rows(smem.q, params.q + d0 * q_col, smem.q_at, q_col, params.d - d0);
            load_rows(smem.k, params.cache.k + d0 * k_col, smem.tokens.k_at, k_col, params.d - d0);
            __syncthreads();    // the chunk is complete
            Units::template add_abt<(sizeof(T) > 2)>(s, smem.q, smem.k);
            __syncthreads();    // all have read it: the next chunk, or v, may take its place
        }
        if constexpr (TokenTile<Stored, KV_TILE>::CODES) scale_columns(s, smem.tokens.k_scale);
    }

    static __device__ __forceinline__ void scale_columns(A (&s)[ROWS][KEYS], const float (&scales)[KV_TILE]) {
#pragma unroll
        for (int c = 0; c < KEYS; ++c) {
            const A factor = scales[Units::x() + Units::COL_THREADS * c];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) s[r][c] *= factor;
        }
    }

    // Products become scores; -inf where a query does not see a key, and in rows and keys beyond the last. Options
    // other than the scale and the window are applied in shared memory, where one loop serves all elements of a thread.
    static __device__ __forceinline__ void score_visible(
        A (&s)[ROWS][KEYS], Smem& smem, const Params& params, const DecodeWork& work, int kv0
    ) {
        const int row0 = Units::y() * ROWS, key0 = kv0 + Units::x();
        if (Score<A>::plain(params)) {
            Units::scale(s, A(params.scale));
        } else {
            Units::put(smem.p, s);
#pragma unroll 1
            for (int r = row0; r < least(row0 + ROWS, work.row1 - work.row0); ++r) {
                const int query = work.query(work.row0 + r), end = least(work.mask.end(query), work.keys.end);
                const auto score = Score<A>::of(params, work.span, work.head(work.row0 + r));
#pragma unroll 1
                for (int key = key0; key < end; key += Units::COL_THREADS) {
                    if (key - kv0 >= KV_TILE) break;
                    A& element = smem.p.at(r, key - kv0);
                    element = score(element, query, key);
                }
            }
            Units::get(s, smem.p);
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int row = work.row0 + row0 + r, first = work.first_key(row), end = work.end_key(row);
#pragma unroll
            for (int c = 0; c < KEYS; ++c) {
                const int key = key0 + Units::COL_THREADS * c;
                if (key < first || key >= end) s[r][c] = -infinity<A>();
            }
        }
    }

    // o = o * shrink + p @ v for a tile of keys.
    static __device__ __forceinline__ void add_values(
        A (&o)[CHUNKS][ROWS][Units::VEC], const A (&shrink)[ROWS], Smem& smem, const Params& params
    ) {
        const int64_t v_col = params.cache.v_strides.col;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            const int column = chunk * COLS;
            if (column >= largest(params.dv, 1)) break;     // its barriers are needed even where there is no column
            load_rows(smem.v, params.cache.v + column * v_col, smem.tokens.v_at, v_col, params.dv - column);
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
#pragma unroll
                for (int c = 0; c < Units::VEC; ++c) o[chunk][r][c] *= shrink[r];
            __syncthreads();    // the chunk of v, and the rows of p of each warp, are complete
            Units::mma_ab(o[chunk], smem.p, smem.v);
            __syncthreads();    // all have read v: the next chunk, or the next tile's places, q and k, may follow
        }
    }

    // The rows' results to where they belong, or those of a part to the workspace.
    static __device__ __forceinline__ void store(
        const Params& params, const DecodeWork& work, const A (&o)[CHUNKS][ROWS][Units::VEC],
        OnlineSoftmax<A, ROWS>& softmax
    ) {
        softmax.finish();
        const bool whole = work.whole;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int row = work.row0 + Units::y() * ROWS + r;
            if (row >= work.row1) continue;
            const int64_t slot = work.slot(params, row);
            const RowSum<A> sum = softmax.row(r);
            if (Units::x() == 0) {
                if (!whole) params.part_sums[slot] = sum;
                else if (params.lse != nullptr) params.lse[work.row_of(params.lse_strides, row)] = sum.lse();
            }
            if (whole && params.out == nullptr) continue;
            const int64_t out_at = whole ? work.row_of(params.out_strides, row) : slot * params.dv;
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
                for (int c = 0; c < Units::VEC; ++c) {
                    const int col = chunk * COLS + Units::x() * Units::VEC + c;
                    if (col >= params.dv) continue;
                    const A number = o[chunk][r][c];
                    if (whole) params.out[out_at + col * params.out_strides.col] = narrow<T>(sum.divide(number));
                    else params.part_outs[out_at + col] = number;
                }
        }
    }
};

}  // namespace cf
