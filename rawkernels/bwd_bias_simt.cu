// bwd_bias_simt.cu -- the gradient of an additive bias on the plain arithmetic units: every dtype, every option.
//
//     dbias = sum of p * (dp - delta) over all that an element of the bias was broadcast over
//
// with p, dp and delta as in bwd_q_simt.cu. No softcap and no scale comes between a bias and the scores.
//
// Tile walk: a block owns Q_TILE x KV_TILE elements of the bias itself (fewer where it has one row or one column), and
// walks the batch entries and heads that share them; where the rows were broadcast it walks all tiles of queries as
// well, and all tiles of keys where the columns were. All is added up in the same registers, in this fixed order:
//
//     entry 0, head 0:  queries  tile 0:  keys  tile 0, tile 1 ...     of these axes, those that were broadcast
//                                tile 1:        tile 0, tile 1 ...
//     entry 0, head 1:  ...
//
// Where few blocks share much work the host has it done in parts, which sum_axes.cu adds up.
//
// Threads: 128, as core/simt_tile.cuh has them.
//
// Shared memory (bytes; float, Q_TILE = KV_TILE = 64):
//     0       chunks  18432   features of q and k, then of dout and v
//     18432   pairs   17920   p, in the end the sum; lse and delta of the queries
//     36352   owned, head 336 what the block works on
//
// Pipeline: none within a block; the blocks that share a multiprocessor hide each other's loads.
#include "attention/recompute.cuh"

namespace cf {

template <GradientConfig CONFIG> struct BwdBiasSimt {
    using T = Storage<CONFIG.dtype>;
    using A = Acc<T>;
    using Units = Simt<A>;
    using Params = BwdBiasParams<T>;
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = CONFIG.blocks;
    static constexpr int Q_TILE = CONFIG.q_tile, KV_TILE = CONFIG.kv_tile;
    using Tiles = Recompute<CONFIG.dtype, CONFIG.columns, Q_TILE, KV_TILE>;
    static constexpr int ROWS = Tiles::ROWS, KEYS = Tiles::KEYS;

    // A tile of the bias, and the pairs of batch entry and head that this block adds up for it.
    struct Owned {
        BatchEntry entry;
        int head, row0, col0;   // of the bias
        int part;
        int64_t first, end;     // as `pair` numbers them
    };

    struct Smem {
        typename Tiles::Chunks chunks;
        typename Tiles::Pairs pairs;
        Owned owned;
        GradientHead<T> head;
    };
    static constexpr int SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        Smem& smem = shared_map<Smem>();
        publish(smem.owned, [&] { return find(params, blockIdx.x); });
        A sum[ROWS][KEYS] = {};
        for (int64_t i = smem.owned.first; i < smem.owned.end; ++i) {
            publish(smem.head, [&] { return pair(params, smem.owned, i); });
            add_head(sum, smem, params);
        }
        Units::put(smem.pairs.tile, sum);
        __syncthreads();    // the sum is complete
        store(params, smem);
    }

    // Blocks count the tiles of a head first, then parts, heads and batch entries.
    static __device__ __forceinline__ Owned find(const Params& params, int64_t block) {
        const int q_tiles = ceil_div(params.rows, Q_TILE), kv_tiles = ceil_div(params.cols, KV_TILE);
        Owned owned;
        owned.col0 = int(block % kv_tiles) * KV_TILE;
        block /= kv_tiles;
        owned.row0 = int(block % q_tiles) * Q_TILE;
        block /= q_tiles;
        owned.part = int(block % params.parts);
        block /= params.parts;
        owned.head = int(block % params.heads);
        owned.entry = BatchEntry::of(block / params.heads, params.batch);

        const auto& problem = params.given.problem;
        int64_t pairs = params.heads == 1 ? problem.hq : 1;
#pragma unroll
        for (int axis = 0; axis < BATCH_AXES; ++axis) pairs *= params.batch[axis] == 1 ? problem.batch[axis] : 1;
        owned.first = owned.part * pairs / params.parts;
        owned.end = (owned.part + 1) * pairs / params.parts;
        return owned;
    }

    // Pair number i of those that share the tile: heads first.
    static __device__ __forceinline__ GradientHead<T> pair(const Params& params, const Owned& owned, int64_t i) {
        const auto& problem = params.given.problem;
        int head = owned.head;
        if (params.heads == 1) {
            head = int(i % problem.hq);
            i /= problem.hq;
        }
        int32_t shared[BATCH_AXES];
#pragma unroll
        for (int axis = 0; axis < BATCH_AXES; ++axis) shared[axis] = params.batch[axis] == 1 ? problem.batch[axis] : 1;
        BatchEntry entry = BatchEntry::of(i, shared);
#pragma unroll
        for (int axis = 0; axis < BATCH_AXES; ++axis) entry.at[axis] += owned.entry.at[axis];   // one of them is 0
        return GradientHead<T>::of(params.given, Span::of(problem, entry), head);
    }

    static __device__ __forceinline__ void add_head(A (&sum)[ROWS][KEYS], Smem& smem, const Params& params) {
        const GradientHead<T>& head = smem.head;
        const int lq = head.q.rows, row0 = smem.owned.row0, tile0 = smem.owned.col0 / KV_TILE;
        const int rows_end = params.rows == 1 ? lq : least(row0 + Q_TILE, lq);
        const int tiles_end = params.cols == 1 ? Mask::NO_TILE : tile0 + 1;
        for (int q0 = row0; q0 < rows_end; q0 += Q_TILE) {
            const int q1 = least(q0 + Q_TILE, lq);
            int t = head.mask.template next_tile<KV_TILE>(tile0, q0, q1);
            if (t >= tiles_end) continue;
            Tiles::load_rows(smem.pairs, head, q0);
            for (; t < tiles_end; t = head.mask.template next_tile<KV_TILE>(t + 1, q0, q1)) {
                A ds[ROWS][KEYS];
                Tiles::weights(smem.pairs, smem.chunks, head, q0, t * KV_TILE, false);
                Tiles::gradients(ds, smem.pairs, smem.chunks, head, q0, t * KV_TILE);
                Units::add(sum, ds);
            }
        }
    }

    // Rows and columns that were broadcast are added up here.
    static __device__ __forceinline__ void store(const Params& params, Smem& smem) {
        const Owned& owned = smem.owned;
        const Strides& strides = params.dbias.strides;
        const int64_t start = owned.part * params.part_stride + offset_of(strides, owned.entry, owned.head);
        const int rows = params.rows == 1 ? 1 : Q_TILE, cols = params.cols == 1 ? 1 : KV_TILE;
        const int high = Q_TILE / rows, wide = KV_TILE / cols;  // elements of the tile to one of the bias
        for (int i = threadIdx.x; i < rows * cols; i += THREADS) {
            const int row = i / cols, col = i % cols;
            if (owned.row0 + row >= params.rows || owned.col0 + col >= params.cols) continue;
            A total = 0;
            for (int r = 0; r < high; ++r)
                for (int c = 0; c < wide; ++c) total += smem.pairs.tile.at(row * high + r, col * wide + c);
            narrow_any(params.dbias.data, params.dbias.dtype,
                       start + (owned.row0 + row) * strides.row + (owned.col0 + col) * strides.col, total);
        }
    }
};

}  // namespace cf
