// decode_mma.cu -- attention of the newest tokens of each sequence over a cache, on the tensor cores of a warp: from
// sm_80 on, 16-bit queries over numbers like them or codes, rows or pages, every option, d up to head_dim and dv up to
// value_dim.
//
//     out = softmax(s) @ v,   lse = log(sum(exp(s))),   s = score(q @ k^T) where the query sees the key, else -inf
//
// Tile walk: a block owns a tile of queries and a part of their keys (attention/decode_work.cuh). Each of its warps has
// all the queries and walks keys of its own, 16 at a time, with a softmax of its own; in the end the warps' results are
// merged as those of parts are, and the last block of a tile to be done merges the parts.
//
//     keys of a part ->   16    16    16    16    16    16    16    16  ...
//     queries             w0    w1    w2    w3    w0    w1    w2    w3  ...
//
// So reading the keys, which is what takes time, is shared by all warps, and no barrier holds one up for another.
//
// Shared memory (bytes; d = dv = 128, 16 queries, 2 stages):
//     0       q       4096     written once
//     4096    ring   65536     a warp's keys and values, STAGES tiles of 8192 for each of 4 warps (of codes: of 4224)
//     4096    merged 33280     the warps' outputs, maxima and sums: take the place of the ring when all are done
//     69632   room    4096     scores on their way through an option
//     73728   seen     128     first and last key of each query
//     73856   work     188     what the block owns, and core/ticket.cuh's word
//
// Pipeline: a warp's next STAGES - 1 tiles are on their way while it computes; each tile is one group of copies. Rows
// that cannot be read in vectors of 16 bytes are copied number by number. Codes stay codes until a warp multiplies with
// them (attention/decode_stage.cuh); their scales come with the tile.
#include "attention/config.cuh"
#include "attention/decode_stage.cuh"
#include "attention/decode_warps.cuh"
#include "attention/fragment_softmax.cuh"
#include "attention/score.cuh"

namespace cf {

struct DecodeMmaConfig {
    Dtype dtype;                // of the queries, and of the cache unless it keeps codes
    Codes codes;
    int head_dim, value_dim;    // d and dv, rounded up
    int q_tile, stages, warps;
    int blocks;
};

template <DecodeMmaConfig CONFIG> struct DecodeMma {
    using T = Storage<CONFIG.dtype>;
    using Stored = typename StoredAs<T, CONFIG.codes>::type;
    using Units = Mma<CONFIG.dtype, CONFIG.warps>;
    using Params = DecodeParams<T, Stored>;
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = CONFIG.blocks, WARPS = CONFIG.warps;
    static constexpr int Q_TILE = CONFIG.q_tile, KEYS = STAGE_KEYS, STAGES = CONFIG.stages;
    static constexpr int HEAD_DIM = CONFIG.head_dim, VALUE_DIM = CONFIG.value_dim;
    static constexpr int M = Q_TILE / 16, N = KEYS / 8, COLS = VALUE_DIM / 8, ROOM = 4 * N;
    static_assert(Q_TILE % 16 == 0, "whole fragments");

    using Stage = DecodeStage<CONFIG.dtype, CONFIG.codes, WARPS, HEAD_DIM, VALUE_DIM>;
    struct Seen { int first, end; };    // keys
    struct Smem {
        MmaTile<Q_TILE, HEAD_DIM> q;
        union {
            Stage ring[WARPS][STAGES];
            WarpResults<Q_TILE, VALUE_DIM> results[WARPS];
        };
        float room[ROOM][THREADS];
        Seen seen[Q_TILE];
        DecodeWork work;    // what is needed seldom stays out of registers
        uint32_t before;
    };
    static constexpr int SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        DecodeItems<Q_TILE, Params>::of().for_each(params, [&](const DecodeWork& work) { attend(params, work); });
    }

    static __device__ __forceinline__ void attend(const Params& params, const DecodeWork& work) {
        Smem& smem = shared_map<Smem>();
        load_queries(smem, params, work);
        const int row = work.row0 + threadIdx.x;
        if (threadIdx.x < Q_TILE) smem.seen[threadIdx.x] = {work.first_key(row), work.end_key(row)};
        if (threadIdx.x == 0) smem.work = work;

        const bool plain = Score<float>::plain(params) && serves_as_unit(float(params.scale));
        const float unit = plain ? float(params.scale) : 1.0f;

        float o[M][COLS][4] = {};
        FragmentSoftmax<Units, M> softmax;
        softmax.start();
        __syncthreads();        // the queries are there
        stream_keys<WARPS>(smem.ring[Units::warp()], params, work, [&](const Stage& stage, int kv0) {
            float s[M][N][4] = {};
            stage.add_scores(s, smem.q);
            if (!plain) apply_options(s, smem, params, kv0);
            hide(s, smem, kv0);     // after options again
            softmax.step(s, o, unit * LOG2_E);
            stage.add_values(o, s);
        });
        leave(smem, params, o, softmax, unit);
        merge_warps(smem.results, params, smem.work);
        if (smem.work.merges(params, smem.before)) merge_parts<WARPS>(params, smem.work);
    }

    static __device__ __forceinline__ void load_queries(Smem& smem, const Params& params, const DecodeWork& work) {
#pragma unroll 1
        for (int i = threadIdx.x; i < Q_TILE * HEAD_DIM; i += THREADS) {
            const int row = i / HEAD_DIM, col = i % HEAD_DIM;
            const bool known = work.row0 + row < work.row1 && col < params.d;
            const T* q = params.q + (known ? work.row_of(params.q_strides, work.row0 + row) : 0);
            const int at = Stage::feature_at(col);
            smem.q.data[smem.q.at(row, at / 8) + at % 8] = known ? q[col * params.q_strides.col].bits : uint16_t(0);
        }
    }

    // Products become scores, as far as their queries see the keys.
    static __device__ __forceinline__ void apply_options(
        float (&s)[M][N][4], Smem& smem, const Params& params, int kv0
    ) {
        const DecodeWork& work = smem.work;
        Units::for_each(s, smem.room, [&](int row, int col, float x) {
            const int key = kv0 + col;
            if (key < smem.seen[row].first || key >= smem.seen[row].end) return -infinity<float>();
            row += work.row0;
            return Score<float>::of(params, work.span, work.head(row))(x, work.query(row), key);
        });
    }

    static __device__ __forceinline__ void hide(float (&s)[M][N][4], const Smem& smem, int kv0) {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const Seen seen = smem.seen[Units::row(m, 2 * half)];
#pragma unroll
                for (int n = 0; n < N; ++n)
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const int key = kv0 + Units::col(n, i);
                        if (key < seen.first || key >= seen.end) s[m][n][2 * half + i] = -infinity<float>();
                    }
            }
    }

    // A warp's results, for the others.
    static __device__ __forceinline__ void leave(
        Smem& smem, const Params& params, const float (&o)[M][COLS][4], const FragmentSoftmax<Units, M>& softmax,
        float unit
    ) {
        const DecodeWork& work = smem.work;
        const Reals& sinks = params.sinks;
        auto& results = smem.results[Units::warp()];
        const bool with_sinks = sinks.data != nullptr && work.part == 0 && Units::warp() == 0;
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = Units::row(m, 2 * half);
                float sink = -infinity<float>();
                if (with_sinks && work.row0 + row < work.row1)
                    sink = widen_any<float>(sinks.data, sinks.dtype, work.head(work.row0 + row) * sinks.strides.head);
                const auto [sum, scale] = softmax.finish(m, half, unit, sink);
                if (Units::col(0, 0) == 0) results.sums[row] = sum;
#pragma unroll
                for (int n = 0; n < COLS; ++n)
#pragma unroll
                    for (int i = 0; i < 2; ++i)
                        results.outs[row][Stage::col(n, i)] = scale * Stage::OUTPUT_UNIT * o[m][n][2 * half + i];
            }
    }
};

}  // namespace cf
