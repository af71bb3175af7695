// simt_mma_abt.cu -- probe of Simt::multiply_abt, add_abt and mma_abt: s + a @ b^T, in chunks of their columns.
#include "../core/simt_tile.cuh"
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeSimtMmaAbt {
    using A = Storage<CONFIG.dtype>;
    using Units = Simt<A>;
    static constexpr int ROWS = 2 * Units::ROW_THREADS, COLS = 2 * Units::COL_THREADS, DEPTH = 4 * Units::VEC;
    struct Params {
        const A* s;         // [ROWS, COLS]
        const A* a;         // [ROWS, depth]
        const A* b;         // [COLS, depth]
        A* out;             // [ROWS, COLS]
        int64_t depth;
    };
    struct Smem {
        SimtTile<A, ROWS, DEPTH> a;
        SimtTile<A, COLS, DEPTH> b;
        SimtTile<A, ROWS, COLS> s;
    };
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = 1, SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        Smem& smem = shared_map<Smem>();
        const int depth = int(params.depth);
        const Matrix<A> a{params.a, depth, 1, ROWS, depth}, b{params.b, depth, 1, COLS, depth};
        Units::load(smem.s, params.s, COLS, 1, ROWS, COLS);
        __syncthreads();    // s is complete
        A s[2][2];
        Units::get(s, smem.s);
        Units::template multiply_abt<true>(s, smem.a, a, 0, smem.b, b, 0);
        Units::put(smem.s, s);
        __syncthreads();    // s is complete
        for (int i = threadIdx.x; i < ROWS * COLS; i += THREADS) params.out[i] = smem.s.at(i / COLS, i % COLS);
    }
};

}  // namespace cf
