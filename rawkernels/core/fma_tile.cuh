// fma_tile.cuh -- products of one warp's few rows with tiles of 8 rows, on the plain arithmetic units in float: for
// kernels that read each tile once, where what counts is that reading it costs as little else as can be.
//
//     mma_abt   s = a @ b^T     a in registers. LANES neighbouring lanes share a row of b: lane t has chunks t,
//                               t + LANES, ... of 4 numbers of it, and the same ones of every row of a. Sums over the
//                               lanes halve what a lane holds at each step, so that in the end each number of s is in
//                               one lane: lane i has row i % ROWS, columns i / ROWS * OWN ... + OWN - 1 of the tile.
//     mma_ab    o += p @ b      lane t has columns 4 t ... 4 t + 3 of all rows of o, and 128 further on (or 2 t and
//                               2 t + 1 of 64 columns). p, in shared memory, is read by all lanes at once.
//
// Eight lanes that are served together read 128 bytes of one row of b in both, or all the same number: tiles need no
// padding and no swizzle to be free of bank conflicts. With a in shared memory, 4 ROWS products would take ROWS more
// loads beside that of b.
#pragma once
#include "platform.cuh"

namespace cf {

// Neighbouring numbers, which are read 16 bytes at a time.
template <int COUNT> struct alignas(least(16, 4 * COUNT)) FmaVec { float at[COUNT]; };

// Rows as they lie in an array.
template <int ROW_COUNT, int COL_COUNT> struct FmaTile {
    static constexpr int ROWS = ROW_COUNT, COLS = COL_COUNT, CHUNKS = COLS / 4;
    alignas(16) float data[ROWS * COLS];

    // Index of the first number of a chunk.
    static __device__ __forceinline__ int at(int row, int chunk) { return row * COLS + 4 * chunk; }
    __device__ __forceinline__ uint32_t address(int row, int chunk) const {
        return uint32_t(__cvta_generic_to_shared(data + at(row, chunk)));
    }
    template <int COUNT> __device__ __forceinline__ FmaVec<COUNT> vec(int row, int col) const {
        return *reinterpret_cast<const FmaVec<COUNT>*>(data + row * COLS + col);
    }
};

// `DEPTH` columns of a, and of b in mma_abt; `WIDTH` columns of o, and of b in mma_ab.
template <int ROW_COUNT, int DEPTH, int WIDTH> struct Fma {
    static constexpr int ROWS = ROW_COUNT, TILE = 8, OWN = ROWS * TILE / WARP;
    static_assert(ROWS == 4 || ROWS == 8, "every lane has a number of s");
    // A lane has at most 64 numbers of a, as many as leave registers for o; eight lanes at least read one row.
    static constexpr int LANES = largest(8, ROWS * DEPTH / 64), PASSES = TILE * LANES / WARP;
    static constexpr int CHUNKS = DEPTH / 4 / LANES;
    static_assert(LANES <= WARP && CHUNKS * LANES * 4 == DEPTH, "lanes share a row in whole chunks");
    static constexpr int LANE_COLS = WIDTH / WARP, VEC = least(4, LANE_COLS);
    static_assert(LANE_COLS % VEC == 0 && VEC * WARP * (LANE_COLS / VEC) == WIDTH, "o is shared in whole vectors");
    static constexpr int FIRST_SHARER = ROWS, END_SHARER = WARP;    // bits by which lanes with one row of s differ
    using Left = FmaVec<4>[ROWS][CHUNKS];

    static __device__ __forceinline__ int lane() { return threadIdx.x % WARP; }
    static __device__ __forceinline__ int warp() { return threadIdx.x / WARP; }
    // What a lane has of s.
    static __device__ __forceinline__ int row() { return lane() % ROWS; }
    static __device__ __forceinline__ int col(int i) { return lane() / ROWS * OWN + i; }
    // The first column of a chunk of a, and column `i` of a lane's columns of o.
    static __device__ __forceinline__ int left_col(int chunk) { return 4 * (lane() % LANES + chunk * LANES); }
    static __device__ __forceinline__ int out_col(int i) { return i / VEC * VEC * WARP + lane() * VEC + i % VEC; }

    template <typename TileB>
    static __device__ __forceinline__ void mma_abt(float (&s)[OWN], const Left& a, const TileB& b) {
        static_assert(TileB::ROWS == TILE && TileB::COLS == DEPTH, "b has the depth of a");
        float sums[PASSES];
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass) {
            float x[ROWS] = {};
#pragma unroll
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                const auto right = b.template vec<4>(lane() / LANES * PASSES + pass, left_col(chunk));
#pragma unroll
                for (int r = 0; r < ROWS; ++r)
#pragma unroll
                    for (int i = 0; i < 4; ++i) x[r] += a[r][chunk].at[i] * right.at[i];
            }
            add_lanes<1, ROWS>(x);
            sums[pass] = x[0];
        }
        add_lanes<ROWS, LANES>(sums);
#pragma unroll
        for (int i = 0; i < OWN; ++i) s[i] = sums[i];
    }

    // p as `put` has left it.
    template <typename TileB>
    static __device__ __forceinline__ void mma_ab(
        float (&o)[ROWS][LANE_COLS], const float (&p)[OWN][WARP], const TileB& b
    ) {
        static_assert(TileB::ROWS == TILE && TileB::COLS == WIDTH, "b has the columns of o");
#pragma unroll
        for (int k = 0; k < TILE; ++k) {
            const auto weights = *reinterpret_cast<const FmaVec<ROWS>*>(p[k % OWN] + k / OWN * ROWS);
#pragma unroll
            for (int c = 0; c < LANE_COLS; c += VEC) {
                const auto right = b.template vec<VEC>(k, out_col(c));
#pragma unroll
                for (int r = 0; r < ROWS; ++r)
#pragma unroll
                    for (int i = 0; i < VEC; ++i) o[r][c + i] += weights.at[r] * right.at[i];
            }
        }
    }
    static __device__ __forceinline__ void put(float (&p)[OWN][WARP], const float (&s)[OWN]) {
#pragma unroll
        for (int i = 0; i < OWN; ++i) p[i][lane()] = s[i];
    }

    // Over the lanes that share a row of s; each gets the result.
    static __device__ __forceinline__ float row_max(float x) {
#pragma unroll
        for (int bit = FIRST_SHARER; bit < END_SHARER; bit *= 2)
            x = largest(x, __shfl_xor_sync(ALL_LANES, x, bit));
        return x;
    }

  private:
    // Adds up x over lanes that differ in the bits FIRST to END / 2. A lane keeps the half of x that its bit says, and
    // gives the other away, at each step; in the end it has COUNT * FIRST / END sums.
    template <int FIRST, int END, int COUNT> static __device__ __forceinline__ void add_lanes(float (&x)[COUNT]) {
#pragma unroll
        for (int bit = END / 2; bit >= FIRST; bit /= 2) {
            const int half = COUNT * bit / END;
            const bool upper = lane() & bit;
#pragma unroll
            for (int i = 0; i < COUNT / 2; ++i) {
                if (i >= half) break;
                const float kept = upper ? x[i + half] : x[i], given = upper ? x[i] : x[i + half];
                x[i] = kept + __shfl_xor_sync(ALL_LANES, given, bit);
            }
        }
    }
};

}  // namespace cf
