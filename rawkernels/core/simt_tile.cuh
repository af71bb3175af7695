// simt_tile.cuh -- matrix products of one block on the plain arithmetic units: operand tiles in shared memory, results
// in registers. Works for float and double on every GPU.
//
// 128 threads stand as 8 rows of 16. Of a ROWS x COLS result thread (y, x) owns ROWS / 8 neighbouring rows, and columns
// that depend on how the right operand lies:
//
//     mma_abt   s = a @ b^T     column i of a thread is x + 16 i; b is read along its rows, VEC numbers at a time
//     mma_ab    o += a @ b      columns x * VEC ... x * VEC + VEC - 1; b is read across its columns
//     mma_atb   o += a^T @ b    as mma_ab; the rows of o are the columns of a
//
// The 16 threads that share rows are half a warp: row sums are four shuffles, and a warp owns its rows alone. VEC
// numbers are 16 bytes. A row is padded by as much, so that eight threads that read eight rows touch all 32 banks.
#pragma once
#include "convert.cuh"
#include "matrix.cuh"

namespace cf {

template <typename A> constexpr int SIMT_VEC = 16 / sizeof(A);

// 16 bytes of numbers.
template <typename A> struct alignas(16) SimtVec { A at[SIMT_VEC<A>]; };

// A tile in shared memory; `PAD` numbers behind each row.
template <typename A, int ROW_COUNT, int COL_COUNT, int PAD = SIMT_VEC<A>> struct SimtTile {
    static constexpr int ROWS = ROW_COUNT, COLS = COL_COUNT, STRIDE = COL_COUNT + PAD;
    static_assert(STRIDE % SIMT_VEC<A> == 0, "rows start at a multiple of 16 bytes");
    alignas(16) A data[ROWS * STRIDE];

    __device__ __forceinline__ A& at(int row, int col) { return data[row * STRIDE + col]; }
    __device__ __forceinline__ SimtVec<A> vec(int row, int col) const {
        return *reinterpret_cast<const SimtVec<A>*>(data + row * STRIDE + col);
    }
};

template <typename A> struct Simt {
    using Vec = SimtVec<A>;
    static constexpr int THREADS = 128, COL_THREADS = 16, ROW_THREADS = THREADS / COL_THREADS;
    static constexpr int VEC = SIMT_VEC<A>;
    static constexpr int COLS = COL_THREADS * VEC;  // columns of one mma_ab
    static constexpr int FIRST_SHARER = 1, END_SHARER = COL_THREADS;    // bits by which threads with one row differ

    static __device__ __forceinline__ int x() { return threadIdx.x % COL_THREADS; }
    static __device__ __forceinline__ int y() { return threadIdx.x / COL_THREADS; }

    // tile = `src`, widened; what lies beyond `rows` and `cols` becomes 0 and is not read. Strides in elements.
    template <typename T, int ROWS, int COLS, int PAD>
    static __device__ __forceinline__ void load(
        SimtTile<A, ROWS, COLS, PAD>& tile, const T* src, int64_t row_stride, int64_t col_stride, int rows, int cols
    ) {
        constexpr int STEP = THREADS / COLS;    // rows that all threads load at once
        static_assert(THREADS % COLS == 0 && ROWS % STEP == 0, "every thread loads the same number of rows");
        const int col = threadIdx.x % COLS, row0 = threadIdx.x / COLS;
        const T* from = src + row0 * row_stride + col * col_stride;
#pragma unroll 8
        for (int i = 0; i < ROWS / STEP; ++i) {
            const int row = row0 + i * STEP;
            tile.at(row, col) = row < rows && col < cols ? widen(*from) : A(0);
            from += STEP * row_stride;
        }
    }

    // tile = the part of `matrix` that starts at (row0, col0).
    template <typename T, typename Tile>
    static __device__ __forceinline__ void load(Tile& tile, const Matrix<T>& matrix, int row0, int col0) {
        load(tile, in_global(matrix.data) + row0 * matrix.row_stride + col0 * matrix.col_stride, matrix.row_stride,
             matrix.col_stride, matrix.rows - row0, matrix.cols - col0);
    }

    // A thread's elements of s to the tile, and back: a thread reads what it has written itself without a barrier.
    template <int R, int C, typename TileS>
    static __device__ __forceinline__ void put(TileS& tile, const A (&s)[R][C]) {
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int c = 0; c < C; ++c) tile.at(y() * R + r, x() + COL_THREADS * c) = s[r][c];
    }
    template <int R, int C, typename TileS> static __device__ __forceinline__ void get(A (&s)[R][C], TileS& tile) {
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int c = 0; c < C; ++c) s[r][c] = tile.at(y() * R + r, x() + COL_THREADS * c);
    }
    template <int R, int C> static __device__ __forceinline__ void scale(A (&s)[R][C], A factor) {
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int c = 0; c < C; ++c) s[r][c] = rounded_product(s[r][c], factor);
    }

    // total += part. Sums over thousands of numbers are made in two steps, of each tile and then of the tiles: rounding
    // errors grow with the square root of how many numbers follow one another (4096 in one row: 1.2e-6, else 3.6e-7).
    template <int R, int C> static __device__ __forceinline__ void add(A (&total)[R][C], const A (&part)[R][C]) {
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int c = 0; c < C; ++c) total[r][c] += part[r][c];
    }

    // s[r][c] += sum over k of a(row r, k) * b(row c, k)
    template <int R, int C, typename TileA, typename TileB>
    static __device__ __forceinline__ void mma_abt(A (&s)[R][C], const TileA& a, const TileB& b) {
        static_assert(TileA::ROWS == R * ROW_THREADS && TileB::ROWS == C * COL_THREADS && TileA::COLS == TileB::COLS,
                      "a has the rows of s, b its columns, and both one depth");
#pragma unroll 1
        for (int k = 0; k < TileA::COLS; k += VEC) {
            Vec right[C];
#pragma unroll
            for (int c = 0; c < C; ++c) right[c] = b.vec(x() + COL_THREADS * c, k);
#pragma unroll
            for (int r = 0; r < R; ++r) {
                const Vec left = a.vec(y() * R + r, k);
#pragma unroll
                for (int c = 0; c < C; ++c)
#pragma unroll
                    for (int i = 0; i < VEC; ++i) s[r][c] += left.at[i] * right[c].at[i];
            }
        }
    }

    // The same, with a sum of these k of its own if in two steps.
    template <bool TWO_STEPS, int R, int C, typename TileA, typename TileB>
    static __device__ __forceinline__ void add_abt(A (&s)[R][C], const TileA& a, const TileB& b) {
        if constexpr (TWO_STEPS) {
            A part[R][C] = {};
            mma_abt(part, a, b);
            add(s, part);
        } else {
            mma_abt(s, a, b);
        }
    }

    // o[r][...] += sum over k of a(row r, k) * b(k, column)
    template <int R, typename TileA, typename TileB>
    static __device__ __forceinline__ void mma_ab(A (&o)[R][VEC], const TileA& a, const TileB& b) {
        static_assert(TileA::ROWS == R * ROW_THREADS && TileB::COLS == COLS && TileA::COLS == TileB::ROWS,
                      "a has the rows of o, b its columns, and what is summed over agrees");
#pragma unroll 1
        for (int k = 0; k < TileA::COLS; k += VEC) {
            Vec left[R];
#pragma unroll
            for (int r = 0; r < R; ++r) left[r] = a.vec(y() * R + r, k);
#pragma unroll
            for (int i = 0; i < VEC; ++i) {
                const Vec right = b.vec(k + i, x() * VEC);
#pragma unroll
                for (int r = 0; r < R; ++r)
#pragma unroll
                    for (int c = 0; c < VEC; ++c) o[r][c] += left[r].at[i] * right.at[c];
            }
        }
    }

    // o[r][...] += sum over k of a(k, row r) * b(k, column)
    template <int R, typename TileA, typename TileB>
    static __device__ __forceinline__ void mma_atb(A (&o)[R][VEC], const TileA& a, const TileB& b) {
        static_assert(TileA::COLS == R * ROW_THREADS && TileB::COLS == COLS && TileA::ROWS == TileB::ROWS,
                      "a has the rows of o as columns, b its columns, and what is summed over agrees");
        static_assert(R % VEC == 0, "a thread reads its columns of a in whole vectors");
#pragma unroll 4
        for (int k = 0; k < TileA::ROWS; ++k) {
            const Vec right = b.vec(k, x() * VEC);
#pragma unroll
            for (int r = 0; r < R; r += VEC) {
                const Vec left = a.vec(k, y() * R + r);
#pragma unroll
                for (int i = 0; i < VEC; ++i)
#pragma unroll
                    for (int c = 0; c < VEC; ++c) o[r + i][c] += left.at[i] * right.at[c];
            }
        }
    }

    // s += a @ b^T for the rows of matrices from a_row and b_row on. All threads of the block; a chunk of each matrix's
    // columns at a time passes through the tiles, which all have read when it returns.
    template <bool TWO_STEPS, int R, int C, typename TileA, typename TileB, typename T>
    static __device__ __forceinline__ void multiply_abt(
        A (&s)[R][C], TileA& a_tile, const Matrix<T>& a, int a_row, TileB& b_tile, const Matrix<T>& b, int b_row
    ) {
#pragma unroll 1
        for (int col = 0; col < a.cols; col += TileA::COLS) {
            load(a_tile, a, a_row, col);
            load(b_tile, b, b_row, col);
            __syncthreads();    // the chunks are complete
            add_abt<TWO_STEPS>(s, a_tile, b_tile);
            __syncthreads();    // all have read them: the next ones, or others, may take their place
        }
    }

    // Calls f(row, column, number) for all that a thread owns of o, in a loop that is not unrolled: for code that is
    // long and runs once. Each thread uses its own part of `room`.
    template <int R, typename F>
    static __device__ __forceinline__ void for_each(const A (&o)[R][VEC], A (&room)[R * VEC][THREADS], F f) {
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
            for (int c = 0; c < VEC; ++c) room[r * VEC + c][threadIdx.x] = o[r][c];
#pragma unroll 1
        for (int i = 0; i < R * VEC; ++i) f(y() * R + i / VEC, x() * VEC + i % VEC, room[i][threadIdx.x]);
    }

    // Over the 16 threads that share rows; every one of them gets the result.
    static __device__ __forceinline__ A row_max(A x) {
#pragma unroll
        for (int lane = 1; lane < COL_THREADS; lane *= 2) {
            const A other = __shfl_xor_sync(ALL_LANES, x, lane);
            x = other > x ? other : x;
        }
        return x;
    }
    static __device__ __forceinline__ A row_sum(A x) {
#pragma unroll
        for (int lane = 1; lane < COL_THREADS; lane *= 2) x += __shfl_xor_sync(ALL_LANES, x, lane);
        return x;
    }
};

// exp, log and tanh as accurate as the language offers.
__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }
__device__ __forceinline__ float log_of(float x) { return logf(x); }
__device__ __forceinline__ double log_of(double x) { return log(x); }
__device__ __forceinline__ float tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x) { return tanh(x); }

}  // namespace cf
