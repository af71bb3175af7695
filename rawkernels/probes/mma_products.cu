// mma_products.cu -- probe of core/mma_tile.cuh: s = a @ b^T + row - column, its rows' maxima and sums, and s @ v. With
// whole numbers, so that no order of a sum could show.
#include "../core/mma_tile.cuh"
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeMmaProducts {
    using T = Storage<CONFIG.dtype>;
    using Units = Mma<CONFIG.dtype, 4>;
    static constexpr int ROWS = 64, KEYS = 32, COLS = 32;
    struct Params {
        const T* a;         // [ROWS, depth], rows `stride` numbers apart, as are those of b and v
        const T* b;         // [KEYS, depth]
        const T* v;         // [KEYS, columns]
        float *tops, *sums; // [ROWS]
        T* out;             // [ROWS, columns]
        int64_t depth, columns, stride;
    };
    struct Smem {
        MmaTile<ROWS, COLS> a, out;
        MmaTile<KEYS, COLS> b, v;
        float room[16][Units::THREADS];
    };
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = 1, SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        Smem& smem = shared_map<Smem>();
        const int depth = int(params.depth), columns = int(params.columns);
        Units::load_async(smem.a, Matrix<T>{params.a, params.stride, 1, ROWS, depth}, 0);
        Units::load_async(smem.b, Matrix<T>{params.b, params.stride, 1, KEYS, depth}, 0);
        if constexpr (ARCH >= 80) ptx::cp_async_commit();
        Units::load_async(smem.v, Matrix<T>{params.v, params.stride, 1, KEYS, columns}, 0);
        if constexpr (ARCH >= 80) { ptx::cp_async_commit(); ptx::cp_async_wait<1>(); }
        __syncthreads();    // a and b are there
        float s[1][KEYS / 8][4] = {}, o[1][COLS / 8][4] = {};
        Units::mma_abt(s, smem.a, 16 * Units::warp(), smem.b);
        Units::wait();
        __syncthreads();    // v is there
        Units::for_each(s, smem.room, [](int row, int col, float x) { return x + row + 16 * Units::warp() - col; });
        uint32_t p[1][KEYS / 16][4];
        Units::to_operand(p, s);
        Units::mma_ab(o, p, smem.v);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = 16 * Units::warp() + Units::row(0, 2 * half);
            float top = s[0][0][2 * half], sum = 0;
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) { top = largest(top, s[0][n][i]); sum += s[0][n][i]; }
            top = Units::quad_max(top);
            sum = Units::quad_sum(sum);
            if (Units::col(0, 0) == 0) { params.tops[row] = top; params.sums[row] = sum; }
#pragma unroll
            for (int n = 0; n < COLS / 8; ++n)
                Units::put_pair(smem.out, row, n, o[0][n][2 * half], o[0][n][2 * half + 1]);
        }
        __syncwarp();       // the warp's rows are complete
        Units::template store_rows<16>(params.out, columns, 1, smem.out, ROWS, columns);
    }
};

}  // namespace cf
