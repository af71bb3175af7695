// simt_mma_atb.cu -- probe of Simt::mma_atb: a^T @ b.
#include "../core/simt_tile.cuh"
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeSimtMmaAtb {
    using A = Storage<CONFIG.dtype>;
    using Units = Simt<A>;
    static constexpr int ROWS = 4 * Units::ROW_THREADS, DEPTH = 16, COLS = Units::COLS;
    struct Params {
        const A* a;         // [DEPTH, ROWS]
        const A* b;         // [DEPTH, COLS]
        A* out;             // [ROWS, COLS]
    };
    struct Smem {
        SimtTile<A, DEPTH, ROWS> a;
        SimtTile<A, DEPTH, COLS, 0> b;
        A room[4 * Units::VEC][Units::THREADS];
    };
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = 1, SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        Smem& smem = shared_map<Smem>();
        Units::load(smem.a, params.a, ROWS, 1, DEPTH, ROWS);
        Units::load(smem.b, params.b, COLS, 1, DEPTH, COLS);
        __syncthreads();    // both tiles are complete
        A o[4][Units::VEC] = {};
        Units::mma_atb(o, smem.a, smem.b);
        Units::for_each(o, smem.room, [&](int row, int col, A x) { params.out[row * COLS + col] = x; });
    }
};

}  // namespace cf
