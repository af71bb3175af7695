// decode_fma.cu -- attention of the newest tokens of each sequence over a cache of float32, on the plain arithmetic
// units: from sm_80 on, rows or pages, every option, d up to head_dim and dv up to value_dim.
//
//     out = softmax(s) @ v,   lse = log(sum(exp(s))),   s = score(q @ k^T) where the query sees the key, else -inf
//
// Tile walk: as decode_mma, with tiles of 8 keys. A block owns a tile of 4 or 8 queries and a part of their keys; each
// of its warps has all the queries, in registers, and walks keys of its own with a softmax of its own.
//
//     keys of a part ->   8     8     8     8     8     8     8     8  ...
//     queries             w0    w1    w2    w3    w0    w1    w2    w3  ...
//
// Lanes (core/fma_tile.cuh): 8 or more share a key, for its products with all queries. Their sums leave a lane with one
// or two scores, no score twice, so that 32 lanes do as many exponentials at once. A lane then owns columns of the
// output, of all queries.
//
// Shared memory (bytes; d = dv = 128, 8 queries, 2 stages):
//     0       ring   65536     a warp's keys and values, STAGES tiles of 8192 for each of 4 warps
//     0       merged 16640     the warps' outputs, maxima and sums: take the place of the ring when all are done
//     65536   p       1024     scores on their way through an option, then weights; a warp's own
//     66560   work     188     what the block owns, and core/ticket.cuh's word
//
// Pipeline: as decode_mma: a warp's next STAGES - 1 tiles are on their way while it computes; each tile is one group of
// copies, and no barrier of the block stands in the loop.
#include "attention/config.cuh"
#include "attention/decode_warps.cuh"
#include "attention/online_softmax.cuh"
#include "attention/score.cuh"
#include "core/fma_tile.cuh"

namespace cf {

struct DecodeFmaConfig {
    Dtype dtype;
    int head_dim, value_dim;    // d and dv, rounded up
    int q_tile, stages, warps;
    int blocks;
};

template <DecodeFmaConfig CONFIG> struct DecodeFma {
    static_assert(CONFIG.dtype == Dtype::float32, "numbers are multiplied as they lie in the cache");
    using Units = Fma<CONFIG.q_tile, CONFIG.head_dim, CONFIG.value_dim>;
    using Params = DecodeParams<float, float>;
    using Softmax = OnlineSoftmax<float, 1, Units>;
    static constexpr int WARPS = CONFIG.warps, THREADS = WARPS * WARP, BLOCKS_PER_SM = CONFIG.blocks;
    static constexpr int Q_TILE = CONFIG.q_tile, KEYS = Units::TILE, STAGES = CONFIG.stages;
    static constexpr int OWN = Units::OWN, COLS = Units::LANE_COLS;

    struct Stage {
        FmaTile<KEYS, CONFIG.head_dim> k;
        FmaTile<KEYS, CONFIG.value_dim> v;
    };
    struct Smem {
        union {
            Stage ring[WARPS][STAGES];
            WarpResults<Q_TILE, CONFIG.value_dim> results[WARPS];
        };
        alignas(16) float p[WARPS][OWN][WARP];
        DecodeWork work;    // what is needed seldom stays out of registers
        uint32_t before;
    };
    static constexpr int SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        DecodeItems<Q_TILE, Params>::of().for_each(params, [&](const DecodeWork& work) { attend(params, work); });
    }

    static __device__ __forceinline__ void attend(const Params& params, const DecodeWork& work) {
        Smem& smem = shared_map<Smem>();
        const int row = work.row0 + Units::row();
        const int first_key = work.first_key(row), end_key = work.end_key(row);
        const bool plain = Score<float>::plain(params);

        typename Units::Left q;
        load_queries(q, params, work);
        float o[Q_TILE][COLS] = {};
        Softmax softmax;
        start(softmax, params, work);
        if (threadIdx.x == 0) smem.work = work;
        __syncthreads();        // what the block owns is there
        float (&p)[OWN][WARP] = smem.p[Units::warp()];
        stream_keys<WARPS>(smem.ring[Units::warp()], params, work, [&](const Stage& stage, int kv0) {
            float s[1][OWN];
            Units::mma_abt(s[0], q, stage.k);
            if (plain) scale(s[0], float(params.scale));
            else apply_options(s[0], p, params, smem.work, kv0);
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const int key = kv0 + Units::col(i);
                if (key < first_key || key >= end_key) s[0][i] = -infinity<float>();
            }
            float shrink[1];
            softmax.step(s, shrink);
            Units::put(p, s[0]);
            if (__any_sync(ALL_LANES, shrink[0] != 1)) scale_rows(o, shrink[0]);
            __syncwarp();       // the weights are there
            Units::mma_ab(o, p, stage.v);
        });
        leave(smem.results[Units::warp()], o, softmax);
        merge_warps(smem.results, params, smem.work);
        if (smem.work.merges(params, smem.before)) merge_parts<WARPS>(params, smem.work);
    }

    // The sink of a row is in the sum of one lane of the tile's first part.
    static __device__ __forceinline__ void start(Softmax& softmax, const Params& params, const DecodeWork& work) {
        const Reals& sinks = params.sinks;
        const int row = work.row0 + Units::row();
        softmax.start();
        if (sinks.data == nullptr || work.part != 0 || Units::warp() != 0 || row >= work.row1) return;
        softmax.start_row(0, widen_any<float>(sinks.data, sinks.dtype, work.head(row) * sinks.strides.head),
                          Units::col(0) == 0);
    }

    static __device__ __forceinline__ void load_queries(
        typename Units::Left& q, const Params& params, const DecodeWork& work
    ) {
#pragma unroll
        for (int r = 0; r < Q_TILE; ++r) {
            const int row = work.row0 + r;
            const float* from = params.q + (row < work.row1 ? work.row_of(params.q_strides, row) : 0);
#pragma unroll
            for (int chunk = 0; chunk < Units::CHUNKS; ++chunk)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int col = Units::left_col(chunk) + i;
                    q[r][chunk].at[i] = row < work.row1 && col < params.d ? from[col * params.q_strides.col] : 0.0f;
                }
        }
    }

    // Products become scores.
    static __device__ __forceinline__ void scale(float (&s)[OWN], float factor) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) s[i] = rounded_product(s[i], factor);
    }
    // The same, as far as their query sees the keys, in a loop that is not unrolled.
    static __device__ __forceinline__ void apply_options(
        float (&s)[OWN], float (&room)[OWN][WARP], const Params& params, const DecodeWork& work, int kv0
    ) {
        const int row = work.row0 + Units::row();
        Units::put(room, s);
#pragma unroll 1
        for (int i = 0; i < OWN; ++i) {
            const int key = kv0 + Units::col(i);
            if (key < work.first_key(row) || key >= work.end_key(row)) continue;
            float& number = room[i][Units::lane()];
            number = Score<float>::of(params, work.span, work.head(row))(number, work.query(row), key);
        }
#pragma unroll
        for (int i = 0; i < OWN; ++i) s[i] = room[i][Units::lane()];
    }

    // Each row of o by the factor that lanes with that row of s have.
    static __device__ __forceinline__ void scale_rows(float (&o)[Q_TILE][COLS], float factor) {
#pragma unroll
        for (int r = 0; r < Q_TILE; ++r) {
            const float own = __shfl_sync(ALL_LANES, factor, r);
#pragma unroll
            for (int c = 0; c < COLS; ++c) o[r][c] *= own;
        }
    }

    // A warp's results, for the others.
    static __device__ __forceinline__ void leave(
        WarpResults<Q_TILE, CONFIG.value_dim>& results, const float (&o)[Q_TILE][COLS], Softmax& softmax
    ) {
        softmax.finish();
        if (Units::col(0) == 0) results.sums[Units::row()] = softmax.row(0);
#pragma unroll
        for (int r = 0; r < Q_TILE; ++r)
#pragma unroll
            for (int c = 0; c < COLS; ++c) results.outs[r][Units::out_col(c)] = o[r][c];
    }
};

}  // namespace cf
