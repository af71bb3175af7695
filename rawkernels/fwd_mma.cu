// fwd_mma.cu -- attention forward on the tensor cores of a warp: float16 from sm_75 on, bfloat16 from sm_80 on, every
// option, d up to head_dim and dv up to value_dim.
//
//     out = softmax(s) @ v,   lse = log(sum(exp(s))),   s = score(q @ k^T) where the mask shows it, else -inf
//
// Tile walk: a block owns Q_TILE queries of one head and walks the tiles of keys that some of them see; a warp owns
// 16 M neighbouring rows, so that each number of k and v that it reads from shared memory serves M products.
//
//     keys ->            tile 0    tile 1     ...     last that the mask shows
//     queries  warp 0  [ s -> p ][ s -> p ]   ...  [   ]      s = q @ k^T, o += p @ v
//              warp 1  [   .    ][   .    ]        [   ]      s, p and o stay in a warp's registers (core/mma_tile.cuh)
//
// Where there are too few tiles of queries for the GPU, each has a block for every part of its keys (Mask::part), which
// stores what is left of the part in float32; merge.cu makes one of them.
//
// Shared memory (bytes; d = dv = 128, Q_TILE = 128, KV_TILE = 64):
//     0       q     32768    as they are; at the end the output on its way out
//     32768   k     16384    of one tile of keys; options other than scale and window pass through it after its use
//     49152   v     16384    likewise
//     65536   tile, work 384 what the block works on
//
// Pipeline: the keys of the next tile are copied while a tile's softmax and second product run, its values while its
// first product runs. So one buffer of each suffices, and two blocks fit where two stages would leave room for one.
//
//     copy      k0 | v0     | k1             | v1     | k2            ...
//     compute      | q k0^T | softmax, p0 v0 | q k1^T | softmax, p1 v1 ...
//                  A        B                A        B                      barriers, each behind a wait for copies
//
// A: k is there, v is free.  B: v is there, k is free.
//
// Limits: rows that cannot be read in vectors of 16 bytes, and all of them on sm_75, are copied number by number, which
// is slower and not asynchronous.
#include "attention/config.cuh"
#include "attention/fragment_softmax.cuh"
#include "attention/operands.cuh"

namespace cf {

template <MmaConfig CONFIG> struct FwdMma {
    using T = Storage<CONFIG.dtype>;
    using Units = Mma<CONFIG.dtype, CONFIG.warps>;
    using Params = FwdParams<T>;
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = CONFIG.blocks;
    static constexpr int Q_TILE = CONFIG.q_tile, KV_TILE = CONFIG.kv_tile;
    static constexpr int HEAD_DIM = CONFIG.head_dim, VALUE_DIM = CONFIG.value_dim;
    static constexpr int M = Q_TILE / (16 * CONFIG.warps);              // fragments of a warp: of rows,
    static constexpr int KEYS = KV_TILE / 8, COLS = VALUE_DIM / 8;      // keys and columns
    static constexpr int ROOM = least(16, 4 * KEYS);     // numbers of a thread on their way through an option
    static_assert(Q_TILE % (16 * CONFIG.warps) == 0, "a warp owns whole fragments");

    // What a block works on, beside its tile of queries. It is read where it is needed: registers are for o, s and p.
    struct Work {
        QueryHead<T> head;
        Matrix<T> values;
        int q0, q1;     // rows of the tile
        bool plain;     // a score is its product times `unit`; else it passes through the options, and is what it is
        float unit;
    };
    struct Smem {
        union {
            MmaTile<Q_TILE, HEAD_DIM> q;
            MmaTile<Q_TILE, VALUE_DIM> out;
        };
        union {
            MmaTile<KV_TILE, HEAD_DIM> k;
            float room[ROOM][THREADS];
        };
        MmaTile<KV_TILE, VALUE_DIM> v;
        QueryTile tile;
        Work work;
    };
    static constexpr int SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        const auto& problem = params.problem;
        Smem& smem = shared_map<Smem>();
        const QueryTile& tile = smem.tile;
        publish(smem.tile, [&] { return QueryTile::of<Q_TILE>(problem, blockIdx.x / params.parts); });
        if (!tile.exists) return;
        publish(smem.work, [&] { return find(params, tile, blockIdx.x % params.parts); });
        const Work& work = smem.work;

        float o[M][COLS][4] = {};
        FragmentSoftmax<Units, M> softmax;
        softmax.start();
        const auto next = [&](int t) { return work.head.mask.template next_tile<KV_TILE>(t, work.q0, work.q1); };
        int t = next(0);
        Units::load_async(smem.q, work.head.q, work.q0);
        if (t != Mask::NO_TILE) Units::load_async(smem.k, work.head.k, t * KV_TILE);
        while (t != Mask::NO_TILE) {
            const int kv0 = t * KV_TILE;
            Units::wait();
            __syncthreads();    // q and k are there; all have done with the values of the tile before
            Units::load_async(smem.v, work.values, kv0);
            float s[M][KEYS][4] = {};
            Units::mma_abt(s, smem.q, 16 * M * Units::warp(), smem.k);
            Units::wait();
            __syncthreads();    // v is there; all have done with k
            if (!work.plain) {
                apply_options(s, smem, kv0);
                __syncthreads();    // all have done with the room
            }
            t = next(t + 1);
            if (t != Mask::NO_TILE) Units::load_async(smem.k, work.head.k, t * KV_TILE);
            hide(s, work, kv0);     // after options it finds what they have hidden, and hides it again

            softmax.step(s, o, work.unit * LOG2_E);
            uint32_t p[M][KEYS / 2][4];
            Units::to_operand(p, s);
            Units::mma_ab(o, p, smem.v);
        }
        store(params, smem, o, softmax);
    }

    static __device__ __forceinline__ Work find(const Params& params, const QueryTile& tile, int part) {
        const auto& problem = params.problem;
        auto head = QueryHead<T>::of(problem, tile.span, tile.head);
        head.mask = head.mask.template part<KV_TILE>(part, params.part_keys, tile.q0);
        const bool plain = head.score.plain() && head.mask.array == nullptr && serves_as_unit(head.score.scale);
        return {head, values_of(problem, tile.span, tile.head), tile.q0, least(tile.q0 + Q_TILE, tile.span.lq),
                plain, plain ? head.score.scale : 1.0f};
    }

    // Products become scores, and -inf where the mask's array hides them.
    static __device__ __forceinline__ void apply_options(float (&s)[M][KEYS][4], Smem& smem, int kv0) {
        const Work& work = smem.work;
        const Mask& mask = work.head.mask;
        Units::for_each(s, smem.room, [&](int row, int col, float x) {
            row += work.q0 + 16 * M * Units::warp();
            const int key = kv0 + col;
            const bool visible = row < work.q1 && key >= mask.first(row) && key < mask.end(row) && mask.shows(row, key);
            return visible ? work.head.score(x, row, key) : -infinity<float>();
        });
    }

    // What the window hides, and keys beyond the last, become -inf.
    static __device__ __forceinline__ void hide(float (&s)[M][KEYS][4], const Work& work, int kv0) {
        const Mask& mask = work.head.mask;
        if (!mask.cuts(work.q0, work.q1, kv0, kv0 + KV_TILE)) return;
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = work.q0 + 16 * M * Units::warp() + Units::row(m, 2 * half);
                const int first = mask.first(row) - kv0, end = mask.end(row) - kv0;
#pragma unroll
                for (int n = 0; n < KEYS; ++n)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i)
                        if (Units::col(n, i) < first || Units::col(n, i) >= end) s[m][n][i] = -infinity<float>();
            }
    }

    // The rows' lse; their output through shared memory, so that it is written in vectors.
    static __device__ __forceinline__ void store(
        const Params& params, Smem& smem, float (&o)[M][COLS][4], const FragmentSoftmax<Units, M>& softmax
    ) {
        const QueryTile& tile = smem.tile;
        const Work& work = smem.work;
        const Reals& sinks = params.problem.sinks;
        const int part = blockIdx.x % params.parts;
        const float sink = sinks.data == nullptr || part > 0
            ? -infinity<float>() : widen_any<float>(sinks.data, sinks.dtype, tile.head * sinks.strides.head);
        const Strides &lse_strides = params.lse_strides, &strides = params.out_strides;
        const int64_t row0 = tile.span.q_start + tile.q0;
        const int64_t out_at = row_of(strides, tile.span.entry, tile.head, row0) + part * params.out_step;
        const int64_t lse_at = row_of(lse_strides, tile.span.entry, tile.head, row0) + part * params.lse_step;
        Units::wait();
        __syncthreads();    // all have done with q, also where no tile was visited
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = 16 * M * Units::warp() + Units::row(m, 2 * half);
                const auto [sum, scale] = softmax.finish(m, half, work.unit, sink);
                const float factor = params.part_outs != nullptr ? scale : sum.divide(scale);
                const bool known = tile.q0 + row < work.q1;
                if (params.lse != nullptr && Units::col(0, 0) == 0 && known)
                    store_sum(params, lse_at + row * lse_strides.row, sum);
#pragma unroll
                for (int n = 0; n < COLS; ++n) { o[m][n][2 * half] *= factor; o[m][n][2 * half + 1] *= factor; }
                if (params.part_outs != nullptr) {
                    if (known) store_part(params, out_at + row * strides.row, o[m], half);
                    continue;
                }
#pragma unroll
                for (int n = 0; n < COLS; ++n)
                    Units::put_pair(smem.out, row, n, o[m][n][2 * half], o[m][n][2 * half + 1]);
            }
        __syncwarp();       // the warp's rows are complete
        if (params.out == nullptr) return;
        Units::template store_rows<16 * M>(
            params.out + out_at, strides.row, strides.col, smem.out, work.q1 - work.q0, params.problem.dv
        );
    }

    // A row of a part's output, from element `at` on, as it is.
    static __device__ __forceinline__ void store_part(
        const Params& params, int64_t at, const float (&o)[COLS][4], int half
    ) {
        const int known = params.problem.dv - Units::col(0, 0);
        float* to = params.part_outs + at + Units::col(0, 0);
#pragma unroll
        for (int n = 0; n < COLS; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i)
                if (8 * n + i < known) to[8 * n + i] = o[n][2 * half + i];
    }
};

}  // namespace cf
