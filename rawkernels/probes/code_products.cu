// code_products.cu -- probe of core/code_tile.cuh: s = a @ b^T, and (scales * p) @ v. With one number other than 0 in
// each row of a and of p, so that no order of a sum could show.
#include "../core/code_tile.cuh"
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeCodeProducts {
    using T = Storage<CONFIG.dtype>;
    using Code = typename StoredAs<T, CONFIG.codes>::type;
    using Warp = Mma<CONFIG.dtype, 4>;
    using Units = CodeMma<CONFIG.dtype, Code, 4>;
    static constexpr int KEYS = 16, COLS = 64, CHUNKS = COLS / 16;
    struct Params {
        const T* a;         // [64, COLS]
        const Code* b;      // [KEYS, COLS]
        const Code* v;      // [KEYS, COLS]
        const float* p;     // [64, KEYS]
        const float* scales;    // [KEYS]
        float* s;           // [64, KEYS]
        float* out;         // [64, COLS]
    };
    struct Smem {
        MmaTile<16, COLS> a[4];     // of each warp
        CodeTile<KEYS, COLS> b, v;
        float scales[KEYS];
    };
    static constexpr int THREADS = Warp::THREADS, BLOCKS_PER_SM = 1, SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        Smem& smem = shared_map<Smem>();
        const int thread = threadIdx.x, row0 = 16 * Warp::warp();
        const int row = thread / CHUNKS % KEYS, chunk = thread % CHUNKS;
        const Code* from = (thread < THREADS / 2 ? params.b : params.v) + row * COLS + 16 * chunk;
        ptx::cp_async_16((thread < THREADS / 2 ? smem.b : smem.v).address(row, chunk), from, 16);
        if (thread < KEYS)
            ptx::cp_async_4(uint32_t(__cvta_generic_to_shared(smem.scales + thread)), params.scales + thread, 4);
        for (int i = Warp::lane(); i < 16 * COLS; i += WARP) {
            const int at = Units::feature_at(i % COLS);
            auto& a = smem.a[Warp::warp()];
            a.data[a.at(i / COLS, at / 8) + at % 8] = params.a[row0 * COLS + i].bits;
        }
        Warp::wait();
        __syncthreads();    // all are there
        float s[1][2][4] = {}, p[1][2][4], o[1][COLS / 8][4] = {}, scales[2][2];
        Units::mma_abt(s, smem.a[Warp::warp()], smem.b);
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = (row0 + Warp::row(0, i)) * KEYS + Warp::col(n, i);
                params.s[at] = s[0][n][i] * Units::PRODUCT_UNIT;
                p[0][n][i] = params.p[at];
                scales[n][i % 2] = smem.scales[Warp::col(n, i)];
            }
        uint32_t operand[Units::PARTS][1][4];
        Units::to_operand(operand, p, scales);
        Units::mma_ab(o, operand, smem.v);
#pragma unroll
        for (int n = 0; n < COLS / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                params.out[(row0 + Warp::row(0, i)) * COLS + Units::col(n, i)] = o[0][n][i] * Units::OUTPUT_UNIT;
    }
};

}  // namespace cf
