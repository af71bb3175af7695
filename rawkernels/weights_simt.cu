// weights_simt.cu -- the softmax itself, from what fwd_simt.cu has found of each row:
//
//     weights = exp(s - max) / sum,   s = score(q @ k^T) where the mask shows it; 0 elsewhere
//
// Not exp(s - lse): the rounding of a large lse would be a relative error of every weight in its row.
//
// Tile walk: a block owns Q_TILE queries and KV_TILE keys of one head. A tile in which nothing is seen is set to 0.
//
// Threads: 128, as core/simt_tile.cuh has them.
//
// Shared memory (bytes; float, Q_TILE = KV_TILE = 64):
//     0       chunks  18432   features of q and k
//     18432   pairs   17920   exp(s - max); max and 1 / sum of the queries
//     36352   tile, head 272  what the block works on
//
// Pipeline: none within a block; the blocks that share a multiprocessor hide each other's loads.
#include "attention/recompute.cuh"

namespace cf {

template <SimtConfig CONFIG> struct WeightsSimt {
    using T = Storage<CONFIG.dtype>;
    using A = Acc<T>;
    using Units = Simt<A>;
    using Params = WeightsParams<T>;
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = CONFIG.blocks;
    static constexpr int Q_TILE = CONFIG.q_tile, KV_TILE = CONFIG.kv_tile;
    using Tiles = Recompute<CONFIG.dtype, CONFIG.value_dim, Q_TILE, KV_TILE>;

    struct Smem {
        typename Tiles::Chunks chunks;
        typename Tiles::Pairs pairs;
        QueryTile tile;
        WeightsHead<T> head;
    };
    static constexpr int SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        Smem& smem = shared_map<Smem>();
        const auto& problem = params.problem;
        const QueryTile& tile = smem.tile;
        const WeightsHead<T>& head = smem.head;
        publish(smem.tile, [&] { return QueryTile::of<Q_TILE>(problem, blockIdx.x / params.kv_tiles); });
        if (!tile.exists) return;
        publish(smem.head, [&] {
            return WeightsHead<T>::of(problem, params.max, params.row_strides, tile.span, tile.head);
        });
        const int t = int(blockIdx.x % params.kv_tiles), kv0 = t * KV_TILE;
        const int q0 = tile.q0, q1 = least(q0 + Q_TILE, tile.span.lq);
        const bool seen = head.mask.template next_tile<KV_TILE>(t, q0, q1) == t;
        if (seen) {
            Tiles::load_lse(smem.pairs, head, q0);
            load_shares(smem.pairs, params, tile, q1);
            __syncthreads();    // the rows' numbers are complete
            Tiles::weights(smem.pairs, smem.chunks, head, q0, kv0, false);
        }

        const Strides& strides = params.weights_strides;
        T* weights = params.weights + offset_of(strides, tile.span.entry, tile.head);
#pragma unroll 1
        for (int i = 0; i < Tiles::ROWS * Tiles::KEYS; ++i) {
            const int row = Units::y() * Tiles::ROWS + i / Tiles::KEYS;
            const int col = Units::x() + i % Tiles::KEYS * Units::COL_THREADS;
            if (q0 + row >= q1 || kv0 + col >= problem.lk) continue;
            weights[(q0 + row) * strides.row + (kv0 + col) * strides.col] =
                narrow<T>(seen ? smem.pairs.tile.at(row, col) * smem.pairs.delta[row] : A(0));
        }
    }

    // 1 / sum of the queries from q0 on; 0 where one has seen no key.
    static __device__ __forceinline__ void load_shares(
        typename Tiles::Pairs& pairs, const Params& params, const QueryTile& tile, int q1
    ) {
        const int i = threadIdx.x, row = tile.q0 + i;
        if (i >= Q_TILE) return;
        const int64_t start = row_of(params.row_strides, tile.span.entry, tile.head, row);
        const A sum = row < q1 ? in_global(params.sum)[start] : A(0);
        pairs.delta[i] = sum == A(0) ? A(0) : A(1) / sum;
    }
};

}  // namespace cf
