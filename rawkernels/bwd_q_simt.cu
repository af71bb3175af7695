// bwd_q_simt.cu -- the gradient of the queries on the plain arithmetic units: every dtype, every option, any d up to
// `columns`, any dv.
//
//     dq = scale * ds @ k,   ds = p * (dp - delta) * bend,   p = exp(s - lse),   dp = dout @ v^T
//
// with bend = d score / d (scale * product), which is 1 without a softcap.
//
// Tile walk: a block owns Q_TILE queries of one head and walks the tiles of keys that some of them see.
//
//     keys ->    tile 0         ...     last that the mask shows
//     queries  [ s -> p, dp -> ds ]     s and dp in chunks of DEPTH features, of q and k, of dout and v
//                 |
//              dq += ds @ k             in chunks of COLS columns
//
// Threads: 128, as core/simt_tile.cuh has them; a warp owns its rows of s, ds and dq from first to last.
//
// Shared memory (bytes; float, Q_TILE = KV_TILE = 64):
//     0       chunks  18432   features of q and k, then of dout and v
//     0       k       16384   a chunk of columns: takes their place when ds is done
//     0       room    16384   a chunk of dq on its way out, in a part for each thread
//     18432   pairs   17920   p, then ds; written and read by one warp each row; lse and delta of the rows
//     36352   tile, head 352  what the block works on
//
// Pipeline: none within a block; the blocks that share a multiprocessor hide each other's loads.
#include "attention/recompute.cuh"

namespace cf {

template <GradientConfig CONFIG> struct BwdQSimt {
    using T = Storage<CONFIG.dtype>;
    using A = Acc<T>;
    using Units = Simt<A>;
    using Params = BwdQParams<T>;
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = CONFIG.blocks;
    static constexpr int Q_TILE = CONFIG.q_tile, KV_TILE = CONFIG.kv_tile, COLS = Units::COLS;
    static constexpr int CHUNKS = CONFIG.columns / COLS;
    static_assert(CONFIG.columns % COLS == 0, "the gradient is kept in whole chunks");
    using Tiles = Recompute<CONFIG.dtype, CONFIG.columns, Q_TILE, KV_TILE>;
    static constexpr int ROWS = Tiles::ROWS, KEYS = Tiles::KEYS;

    struct Smem {
        union {
            typename Tiles::Chunks chunks;
            SimtTile<A, KV_TILE, COLS, 0> k;
            A room[ROWS * Units::VEC][THREADS];
        };
        typename Tiles::Pairs pairs;
        QueryTile tile;
        GradientHead<T> head;
    };
    static constexpr int SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        Smem& smem = shared_map<Smem>();
        const QueryTile& tile = smem.tile;
        const GradientHead<T>& head = smem.head;
        publish(smem.tile, [&] { return QueryTile::of<Q_TILE>(params.given.problem, blockIdx.x); });
        if (!tile.exists) return;
        publish(smem.head, [&] { return GradientHead<T>::of(params.given, tile.span, tile.head); });
        const auto next = [&](int t) {
            return head.mask.template next_tile<KV_TILE>(t, tile.q0, least(tile.q0 + Q_TILE, tile.span.lq));
        };

        A dq[CHUNKS][ROWS][Units::VEC] = {};
        Tiles::load_rows(smem.pairs, head, tile.q0);
        for (int t = next(0); t != Mask::NO_TILE; t = next(t + 1)) {
            A ds[ROWS][KEYS];
            Tiles::weights(smem.pairs, smem.chunks, head, tile.q0, t * KV_TILE, true);
            Tiles::gradients(ds, smem.pairs, smem.chunks, head, tile.q0, t * KV_TILE);
            Units::put(smem.pairs.tile, ds);
            add_keys(dq, smem, head.k, t * KV_TILE);
        }
        store(params, smem, dq);
    }

    // dq += ds @ k for the keys from kv0 on.
    static __device__ __forceinline__ void add_keys(
        A (&dq)[CHUNKS][ROWS][Units::VEC], Smem& smem, const Matrix<T>& k, int kv0
    ) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            if (chunk * COLS >= k.cols) break;
            Units::load(smem.k, k, kv0, chunk * COLS);
            __syncthreads();    // the chunk of k, and the rows of ds of each warp, are complete
            A tile_dq[ROWS][Units::VEC] = {};
            Units::mma_ab(tile_dq, smem.pairs.tile, smem.k);
            Units::add(dq[chunk], tile_dq);
            __syncthreads();    // all have read k: the next chunk, or q and k, may take its place
        }
    }

    static __device__ __forceinline__ void store(
        const Params& params, Smem& smem, const A (&dq)[CHUNKS][ROWS][Units::VEC]
    ) {
        const QueryTile& tile = smem.tile;
        const auto& problem = params.given.problem;
        const Strides& strides = params.dq.strides;
        const int64_t row0 = row_of(strides, tile.span.entry, tile.head, tile.span.q_start + tile.q0);
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk)
            Units::for_each(dq[chunk], smem.room, [&](int row, int col, A x) {
                col += chunk * COLS;
                if (tile.q0 + row < tile.span.lq && col < problem.d)
                    narrow_any(params.dq.data, params.dq.dtype, row0 + row * strides.row + col * strides.col,
                               A(problem.scale) * x);
            });
    }
};

}  // namespace cf
