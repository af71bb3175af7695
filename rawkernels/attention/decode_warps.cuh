// decode_warps.cuh -- what decoding kernels share whose warps walk keys of their own: how tokens come into a warp's
// buffers and pass through them, and where its block's results go.
#pragma once
#include "decode_work.cuh"

namespace cf {

// By one warp: row i of the tile becomes the vector that starts at element `at` of lane i; zeros where that is ABSENT.
// Begins to copy, or, where rows are not whole vectors of 16 bytes, copies number by number.
template <typename Tile, typename T>
__device__ __forceinline__ void copy_rows(
    Tile& tile, const T* data, const TokenStrides& strides, int64_t at, int cols
) {
    constexpr int VEC = 16 / sizeof(T), GROUP = Tile::CHUNKS % 8 == 0 ? 8 : 4, STEP = WARP / GROUP;
    const int lane = threadIdx.x % WARP, row = lane / GROUP, chunk = lane % GROUP;
    const bool in_vectors = strides.col == 1 && (strides.row | strides.token | strides.head | cols) % VEC == 0 &&
                            reinterpret_cast<uint64_t>(data) % 16 == 0;
    if (in_vectors) {
#pragma unroll
        for (int i = 0; i < Tile::ROWS; i += STEP) {
            const int64_t from = __shfl_sync(ALL_LANES, at, row + i);
            const T* vector = data + VEC * chunk + from;
#pragma unroll
            for (int group = 0; group < Tile::CHUNKS; group += GROUP) {
                const bool known = from != ABSENT && VEC * (group + chunk) < cols;
                ptx::cp_async_16(tile.address(row + i, group + chunk), vector + VEC * group, known ? 16 : 0);
            }
        }
        return;
    }
#pragma unroll 1
    for (int i = 0; i < Tile::ROWS; i += STEP) {
        const int64_t from = __shfl_sync(ALL_LANES, at, row + i);
#pragma unroll 1
        for (int group = chunk; group < Tile::CHUNKS; group += GROUP) {
            T* to = reinterpret_cast<T*>(tile.data + Tile::at(row + i, group));
#pragma unroll 1
            for (int number = 0; number < VEC; ++number) {
                const int col = VEC * group + number;
                to[number] = from != ABSENT && col < cols ? data[from + col * strides.col] : T{};
            }
        }
    }
}

// By one warp: begins to copy the keys and values of the tokens from `begin` on, those of the part, as one group of
// copies; zeros for the others.
template <typename Stage, typename T, typename Stored>
__device__ __forceinline__ void load_tokens(
    Stage& stage, const DecodeParams<T, Stored>& params, const DecodeWork& work, int begin
) {
    const auto& cache = params.cache;
    const int mine = begin + int(threadIdx.x % stage.k.ROWS);   // a lane finds one token, for all
    Place place{0, 0, false};
    if (mine < work.keys.end) place = place_of(cache, work.sequence, mine);
    const int64_t k_at = place.exists ? place.offset(cache.k_strides, work.kv_head) : ABSENT;
    const int64_t v_at = place.exists ? place.offset(cache.v_strides, work.kv_head) : ABSENT;
    copy_rows(stage.k, cache.k, cache.k_strides, k_at, params.d);
    copy_rows(stage.v, cache.v, cache.v_strides, v_at, params.dv);
    if constexpr (sizeof(Stored) == 1) stage.load_scales(cache, place, work.kv_head);
    ptx::cp_async_commit();
}

// By each warp: its tiles of the part's keys, one after another, while its next STAGES - 1 are on their way; use(stage,
// key) works on the one that starts at `key`. After that all warps have done with their rings.
template <int WARPS, typename Stage, int STAGES, typename T, typename Stored, typename Use>
__device__ __forceinline__ void stream_keys(
    Stage (&ring)[STAGES], const DecodeParams<T, Stored>& params, const DecodeWork& work, Use use
) {
    static_assert(STAGES > 1, "one tile arrives while another is used");
    constexpr int KEYS = decltype(Stage::k)::ROWS, STEP = KEYS * WARPS, AHEAD = (STAGES - 1) * STEP;
    const int first = work.keys.begin + KEYS * int(threadIdx.x / WARP);
    int to = 0;     // the stage that is filled; the one behind it has been filled for longest
#pragma unroll 1
    for (int kv0 = first - AHEAD; kv0 < work.keys.end; kv0 += STEP) {
        load_tokens(ring[to], params, work, kv0 + AHEAD);
        to = to == STAGES - 1 ? 0 : to + 1;
        if (kv0 < first) continue;
        ptx::cp_async_wait<STAGES - 1>();
        __syncwarp();       // the tile is there
        use(ring[to], kv0);
        __syncwarp();       // all lanes have read the tile, and what `use` shares: others may take their place
    }
    ptx::cp_async_wait_all();
    __syncthreads();        // all warps have done with the ring
}

// What a warp leaves of the tile's rows: outputs before their division, and the sums to divide by.
template <int ROWS, int COLS> struct WarpResults {
    float outs[ROWS][COLS];
    RowSum<float> sums[ROWS];
};

// The results of all warps become those of the part, which go where they belong or to the workspace, a row to a warp.
template <int WARPS, int ROWS, int COLS, typename T, typename Stored>
__device__ __forceinline__ void merge_warps(
    const WarpResults<ROWS, COLS> (&results)[WARPS], const DecodeParams<T, Stored>& params, const DecodeWork& work
) {
    __syncthreads();        // the results of all warps are there
    const bool whole = work.whole;
#pragma unroll 1
    for (int i = threadIdx.x / WARP; i < work.row1 - work.row0; i += WARPS) {
        const int row = work.row0 + i;
        const int64_t slot = work.slot(params, row);
        T* out = params.out == nullptr ? nullptr : params.out + work.row_of(params.out_strides, row);
        float* part_out = whole ? nullptr : params.part_outs + slot * params.dv;
        const RowSum<float> all = merge_row<float>(
            WARPS, whole && out == nullptr ? 0 : params.dv,
            [&](int warp) { return results[warp].sums[i]; },
            [&](int warp, int col) { return results[warp].outs[i][col]; },
            [&](int col, float number, const RowSum<float>& sum) {
                if (whole) out[col * params.out_strides.col] = narrow<T>(sum.divide(number));
                else part_out[col] = number;
            }
        );
        if (threadIdx.x % WARP != 0) continue;
        if (!whole) params.part_sums[slot] = all;
        else if (params.lse != nullptr) params.lse[work.row_of(params.lse_strides, row)] = all.lse();
    }
}

}  // namespace cf
