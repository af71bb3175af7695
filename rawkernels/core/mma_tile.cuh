// mma_tile.cuh -- matrix products of a warp on tensor cores (mma.sync): 16-bit operands in shared memory, results and
// sums in float in registers.
//
// A fragment is a warp's share of 16 rows x 8 columns. Lane 4 g + t holds of it, as numbers 0 to 3,
//
//                  columns 2 t   2 t + 1
//     row g                [0]     [1]
//     row g + 8            [2]     [3]
//
// so four neighbouring lanes, a quad, share their two rows. Two fragments side by side, rounded to 16 bits, are in each
// lane just what the left operand of the next product takes: s = a @ b^T becomes p of o = p @ v without leaving its
// registers.
#pragma once
#include "convert.cuh"
#include "matrix.cuh"

namespace cf {

// A tile of 16-bit numbers. A chunk of 8 numbers (16 bytes) lies at a place in its row that depends on the row, so that
// eight rows of one chunk, as ldmatrix reads them, and eight chunks of one row, as copies write them, touch all banks.
template <int ROW_COUNT, int COL_COUNT> struct MmaTile {
    static constexpr int ROWS = ROW_COUNT, COLS = COL_COUNT, CHUNKS = COLS / 8;
    static_assert(COLS % 32 == 0, "a row fills the banks, or half of them, so that rows alternate between the halves");
    alignas(128) uint16_t data[ROWS * COLS];

    // Index of the first number of a chunk.
    static __device__ __forceinline__ int at(int row, int chunk) {
        const int swizzle = COLS % 64 == 0 ? row % 8 : row / 2 % 4;
        return row * COLS + (chunk ^ swizzle) * 8;
    }
    __device__ __forceinline__ uint32_t address(int row, int chunk) const {
        return uint32_t(__cvta_generic_to_shared(data + at(row, chunk)));
    }
    // From the address of chunk 0 or 1 of a row to that of the chunk 2 i further on, in one instruction.
    static __device__ __forceinline__ uint32_t further(uint32_t address, int i) {
        return (address ^ i % 4 * 32) + i / 4 * 128;
    }
};

// `WARPS` warps, each of which has results of 16 M rows.
template <Dtype DTYPE, int WARPS> struct Mma {
    using T = Storage<DTYPE>;
    static constexpr int THREADS = WARPS * WARP;

    static __device__ __forceinline__ int lane() { return threadIdx.x % WARP; }
    static __device__ __forceinline__ int warp() { return threadIdx.x / WARP; }
    // Where number i of fragment (m, n) stands among the rows of the warp and the columns of the result.
    static __device__ __forceinline__ int row(int m, int i) { return 16 * m + lane() / 4 + i / 2 * 8; }
    static __device__ __forceinline__ int col(int n, int i) { return 8 * n + lane() % 4 * 2 + i % 2; }

    // Begins to copy: tile = `matrix` from row0 on, with zeros beyond its rows and columns. All threads; what they copy
    // is there when each has waited (wait) and then met the others at a barrier. Threads stand side by side along
    // GROUP chunks of as many rows as there is room for, so that all their places follow from one each.
    template <int ROWS, int COLS>
    static __device__ __forceinline__ void load_async(MmaTile<ROWS, COLS>& tile, const Matrix<T>& matrix, int row0) {
        using Tile = MmaTile<ROWS, COLS>;
        constexpr int GROUP = COLS % 64 == 0 ? 8 : 4, STEP = THREADS / GROUP;
        static_assert(ROWS % STEP == 0 && STEP % 8 == 0, "the swizzle of a thread's rows is the same");
        const int row = threadIdx.x / GROUP, chunk = threadIdx.x % GROUP;
        const int rows = matrix.rows - row0 - row, cols = matrix.cols - 8 * chunk;
        const int64_t row_stride = matrix.row_stride, col_stride = matrix.col_stride;
        const T* from = in_global(matrix.data) + (row0 + row) * row_stride + 8 * chunk * col_stride;
        if constexpr (ARCH >= 80)
            if (matrix.in_vectors()) {
                const uint32_t to = tile.address(row, chunk);
#pragma unroll
                for (int i = 0; i < ROWS / STEP; ++i) {
#pragma unroll
                    for (int group = 0; group < COLS / 8; group += GROUP) {
                        const int known = i * STEP < rows ? largest(0, least(8, cols - 8 * group)) : 0;
                        ptx::cp_async_16(to + 2 * i * STEP * COLS + 16 * group, from + 8 * group, 2 * known);
                    }
                    from += STEP * row_stride;
                }
                return;
            }
#pragma unroll 1
        for (int i = 0; i < ROWS; i += STEP)
#pragma unroll 1
            for (int col = 0; col < COLS; col += 8 * GROUP)
#pragma unroll 1
                for (int number = 0; number < 8; ++number) {
                    const bool known = i < rows && col + number < cols;
                    tile.data[Tile::at(row + i, chunk + col / 8) + number] =
                        known ? from[i * row_stride + (col + number) * col_stride].bits : uint16_t(0);
                }
    }
    // Waits for all that this thread has begun to copy.
    static __device__ __forceinline__ void wait() {
        if constexpr (ARCH >= 80) ptx::cp_async_wait_all();
    }

    // s[m][n] += a @ b^T, of the rows of a from a_row0 on.
    template <int M, int N, typename TileA, typename TileB>
    static __device__ __forceinline__ void mma_abt(float (&s)[M][N][4], const TileA& a, int a_row0, const TileB& b) {
        static_assert(TileA::ROWS % (16 * M) == 0 && TileB::ROWS == 8 * N && TileA::COLS == TileB::COLS && N % 2 == 0,
                      "a has the rows of s, b its columns, and both one depth");
#pragma unroll
        for (int k = 0; k < TileA::CHUNKS; k += 2) {
            uint32_t left[M][4];
#pragma unroll
            for (int m = 0; m < M; ++m)
                ptx::ldmatrix_x4(left[m], a.address(a_row0 + 16 * m + lane() % 16, k + lane() / 16));
#pragma unroll
            for (int n = 0; n < N; n += 2) {
                uint32_t right[4];
                ptx::ldmatrix_x4(right, b.address(8 * n + lane() / 16 * 8 + lane() % 8, k + lane() / 8 % 2));
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    mma(s[m][n], left[m], right[0], right[1]);
                    mma(s[m][n + 1], left[m], right[2], right[3]);
                }
            }
        }
    }

    // o[m][n] += p @ v
    template <int M, int K, int N, typename TileV>
    static __device__ __forceinline__ void mma_ab(float (&o)[M][N][4], const uint32_t (&p)[M][K][4], const TileV& v) {
        static_assert(TileV::ROWS == 16 * K && TileV::COLS == 8 * N && N % 2 == 0, "v has the columns of o");
#pragma unroll
        for (int k = 0; k < K; ++k)
#pragma unroll
            for (int n = 0; n < N; n += 2) {
                uint32_t right[4];
                ptx::ldmatrix_x4_trans(right, v.address(16 * k + lane() % 16, n + lane() / 16));
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    mma(o[m][n], p[m][k], right[0], right[1]);
                    mma(o[m][n + 1], p[m][k], right[2], right[3]);
                }
            }
    }

    // A result as the left operand of a product: p = s, rounded.
    template <int M, int N>
    static __device__ __forceinline__ void to_operand(uint32_t (&p)[M][N / 2][4], const float (&s)[M][N][4]) {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int n = 0; n < N; ++n)
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    p[m][n / 2][n % 2 * 2 + half] = narrow_pair(s[m][n][2 * half], s[m][n][2 * half + 1]);
    }

    // s = f(row, column, s) for all numbers of a result, a few fragments at a time in a loop that is not
    // unrolled: for code that is long. Each thread uses its own part of `room`.
    template <int M, int N, int ROOM, typename F>
    static __device__ __forceinline__ void for_each(float (&s)[M][N][4], float (&room)[ROOM][THREADS], F f) {
        constexpr int STEP = ROOM / 4;  // fragments
        static_assert(N % STEP == 0, "the room is filled each time");
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int n0 = 0; n0 < N; n0 += STEP) {
#pragma unroll
                for (int i = 0; i < ROOM; ++i) room[i][threadIdx.x] = s[m][n0 + i / 4][i % 4];
#pragma unroll 1
                for (int i = 0; i < ROOM; ++i) {
                    float& number = room[i][threadIdx.x];
                    number = f(row(m, i % 4), col(n0 + i / 4, i % 4), number);
                }
#pragma unroll
                for (int i = 0; i < ROOM; ++i) s[m][n0 + i / 4][i % 4] = room[i][threadIdx.x];
            }
    }

    // Columns 2 t and 2 t + 1 of fragment n, of one row, to a tile.
    template <typename Tile>
    static __device__ __forceinline__ void put_pair(Tile& tile, int row, int n, float low, float high) {
        *reinterpret_cast<uint32_t*>(tile.data + Tile::at(row, n) + lane() % 4 * 2) = narrow_pair(low, high);
    }

    // The first rows and columns of a tile to an array, each warp its own ROWS rows.
    template <int ROWS, typename Tile>
    static __device__ __forceinline__ void store_rows(
        T* to, int64_t row_stride, int64_t col_stride, const Tile& tile, int rows, int cols
    ) {
        const bool in_vectors = Matrix<T>{to, row_stride, col_stride, rows, cols}.in_vectors();
#pragma unroll 4
        for (int index = lane(); index < ROWS * Tile::CHUNKS; index += WARP) {
            const int row = ROWS * warp() + index / Tile::CHUNKS, chunk = index % Tile::CHUNKS;
            const int known = row < rows ? least(8, cols - 8 * chunk) : 0;
            const uint16_t* from = tile.data + Tile::at(row, chunk);
            T* start = to + row * row_stride + 8 * chunk * col_stride;
            if (in_vectors && known == 8) *reinterpret_cast<Vector*>(start) = *reinterpret_cast<const Vector*>(from);
            else for (int i = 0; i < known; ++i) start[i * col_stride] = T{from[i]};
        }
    }

    // Over the lanes that share a row; each gets the result.
    static __device__ __forceinline__ float quad_max(float x) {
        x = largest(x, __shfl_xor_sync(ALL_LANES, x, 1));
        return largest(x, __shfl_xor_sync(ALL_LANES, x, 2));
    }
    static __device__ __forceinline__ float quad_sum(float x) {
        x += __shfl_xor_sync(ALL_LANES, x, 1);
        return x + __shfl_xor_sync(ALL_LANES, x, 2);
    }

    // c += a @ b, of 16 x 16 and 16 x 8 numbers.
    static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        if constexpr (DTYPE == Dtype::bfloat16) {
            ptx::mma_m16n8k16_bf16(c, a, b0, b1);
        } else if constexpr (ARCH >= 80) {
            ptx::mma_m16n8k16_f16(c, a, b0, b1);
        } else {
            ptx::mma_m16n8k8_f16(c, a[0], a[1], b0);
            ptx::mma_m16n8k8_f16(c, a[2], a[3], b1);
        }
    }

  private:
    // Two numbers as they lie in memory.
    static __device__ __forceinline__ uint32_t narrow_pair(float low, float high) {
        if constexpr (ARCH < 80) return narrow<T>(low).bits | uint32_t(narrow<T>(high).bits) << 16;
        else if constexpr (DTYPE == Dtype::float16) return ptx::cvt_f16x2_f32(low, high);
        else return ptx::cvt_bf16x2_f32(low, high);
    }
};

}  // namespace cf
