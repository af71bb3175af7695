// bwd_kv_simt.cu -- the gradients of keys and values on the plain arithmetic units: every dtype, every option, any d
// and dv, summed over the query heads that share a key/value head.
//
//     dv = p^T @ dout,   dk = scale * ds^T @ q,   ds = p * (dp - delta) * bend
//
// as in bwd_q_simt.cu.
//
// Tile walk: a block owns KV_TILE keys of one key/value head and `columns` columns of either dk or dv, and walks the
// group's heads, and of each the tiles of queries that see some of its keys. p is computed again for each slice of
// columns; dp only for those of dk.
//
//                head 0                        ...   last head of the group
//     queries    tile 0   tile 1  ...  last    ...   tile 0 ...
//     keys     [ s -> p, dp -> ds ]                                   chunks of DEPTH features
//                 |
//              dv += p^T @ dout   or   dk += ds^T @ q                 chunks of COLS columns
//
// In place of this a block could own the same columns of both dk and dv. That saves one of five products where d <= 64,
// takes twice the registers, and costs more products from d = 128 on, where it has room for half as many columns.
//
// Threads: 128, as core/simt_tile.cuh has them. Rows of s belong to queries, rows of the gradient to keys: all threads
// read the whole tile of p or ds.
//
// Shared memory (bytes; float, Q_TILE = KV_TILE = 64):
//     0       chunks  18432   features of q and k, then of dout and v
//     0       rows    16384   columns of q or dout: takes their place when p or ds is done
//     0       room    16384   a chunk of the gradient on its way out, in a part for each thread
//     18432   pairs   17920   p or ds; lse and delta of the queries
//     36352   tile, head 352  what the block works on
//
// Pipeline: none within a block; the blocks that share a multiprocessor hide each other's loads.
#include "attention/recompute.cuh"

namespace cf {

template <GradientConfig CONFIG> struct BwdKvSimt {
    using T = Storage<CONFIG.dtype>;
    using A = Acc<T>;
    using Units = Simt<A>;
    using Params = BwdKvParams<T>;
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = CONFIG.blocks;
    static constexpr int Q_TILE = CONFIG.q_tile, KV_TILE = CONFIG.kv_tile, COLS = Units::COLS;
    static constexpr int CHUNKS = CONFIG.columns / COLS;
    static_assert(CONFIG.columns % COLS == 0, "the gradient is kept in whole chunks");
    using Tiles = Recompute<CONFIG.dtype, CONFIG.columns, Q_TILE, KV_TILE>;
    static constexpr int KEY_ROWS = KV_TILE / Units::ROW_THREADS;   // rows of the gradient that a thread owns
    using Sum = A[CHUNKS][KEY_ROWS][Units::VEC];

    struct Smem {
        union {
            typename Tiles::Chunks chunks;
            SimtTile<A, Q_TILE, COLS, 0> rows;
            A room[KEY_ROWS * Units::VEC][THREADS];
        };
        typename Tiles::Pairs pairs;
        KeyTile tile;
        GradientHead<T> head;
    };
    static constexpr int SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        Smem& smem = shared_map<Smem>();
        const auto& problem = params.given.problem;
        const int slices = params.k_slices + params.v_slices, slice = int(blockIdx.x % slices);
        const bool of_keys = slice < params.k_slices;
        const int col0 = (of_keys ? slice : slice - params.k_slices) * CONFIG.columns;
        const KeyTile& tile = smem.tile;
        publish(smem.tile, [&] {
            return KeyTile::of<KV_TILE>(problem, params.hk, params.kv_tiles, blockIdx.x / slices);
        });
        if (!tile.exists) return;

        Sum sum = {};
        for (int i = 0; i < problem.group; ++i) {
            publish(smem.head, [&] {
                return GradientHead<T>::of(params.given, tile.span, tile.head * problem.group + i);
            });
            add_head(sum, smem, of_keys, col0);
        }
        store(of_keys ? params.dk : params.dv, smem, sum, of_keys ? A(problem.scale) : A(1), col0,
              of_keys ? problem.d : problem.dv);
    }

    // What the queries of one head add to the gradient.
    static __device__ __forceinline__ void add_head(Sum& sum, Smem& smem, bool of_keys, int col0) {
        const GradientHead<T>& head = smem.head;
        const int kv0 = smem.tile.kv0, kv1 = kv0 + KV_TILE, lq = head.q.rows;
        const auto next = [&](int t) { return head.mask.template next_query_tile<Q_TILE>(t, kv0, kv1, lq); };
        for (int t = next(0); t != Mask::NO_TILE; t = next(t + 1)) {
            const int q0 = t * Q_TILE;
            Tiles::load_rows(smem.pairs, head, q0);
            Tiles::weights(smem.pairs, smem.chunks, head, q0, kv0, of_keys);
            if (of_keys) {
                A ds[Tiles::ROWS][Tiles::KEYS];
                Tiles::gradients(ds, smem.pairs, smem.chunks, head, q0, kv0);
                Units::put(smem.pairs.tile, ds);
            }
            add_rows(sum, smem, of_keys ? head.q : head.dout, q0, col0);
        }
    }

    // sum += tile^T @ rows for the queries from q0 on.
    static __device__ __forceinline__ void add_rows(Sum& sum, Smem& smem, const Matrix<T>& rows, int q0, int col0) {
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            const int col = col0 + chunk * COLS;
            if (col >= rows.cols) break;
            Units::load(smem.rows, rows, q0, col);
            __syncthreads();    // the chunk of rows, and the whole tile of p or ds, are complete
            A tile_sum[KEY_ROWS][Units::VEC] = {};
            Units::mma_atb(tile_sum, smem.pairs.tile, smem.rows);
            Units::add(sum[chunk], tile_sum);
            __syncthreads();    // all have read both: others may take their place
        }
    }

    static __device__ __forceinline__ void store(
        const Gradient& gradient, Smem& smem, const Sum& sum, A factor, int col0, int cols
    ) {
        const KeyTile& tile = smem.tile;
        const Strides& strides = gradient.strides;
        const int64_t row0 = row_of(strides, tile.span.entry, tile.head, tile.span.kv_start + tile.kv0);
        const int rows = tile.span.lk - tile.kv0;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk)
            Units::for_each(sum[chunk], smem.room, [&](int row, int col, A x) {
                col += col0 + chunk * COLS;
                if (row < rows && col < cols)
                    narrow_any(gradient.data, gradient.dtype, row0 + row * strides.row + col * strides.col, factor * x);
            });
    }
};

}  // namespace cf
