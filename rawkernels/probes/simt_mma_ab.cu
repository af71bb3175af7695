// simt_mma_ab.cu -- probe of Simt::mma_ab and for_each: a @ b, and twice that, each element where for_each says it is.
#include "../core/simt_tile.cuh"
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeSimtMmaAb {
    using A = Storage<CONFIG.dtype>;
    using Units = Simt<A>;
    static constexpr int ROWS = 2 * Units::ROW_THREADS, DEPTH = 16, COLS = Units::COLS;
    struct Params {
        const A* a;         // [ROWS, DEPTH]
        const A* b;         // [DEPTH, COLS]
        A *once, *twice;    // [ROWS, COLS]: the product, and what comes of adding it once more
    };
    struct Smem {
        SimtTile<A, ROWS, DEPTH> a;
        SimtTile<A, DEPTH, COLS, 0> b;
        A room[2 * Units::VEC][Units::THREADS];
    };
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = 1, SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        Smem& smem = shared_map<Smem>();
        Units::load(smem.a, params.a, DEPTH, 1, ROWS, DEPTH);
        Units::load(smem.b, params.b, COLS, 1, DEPTH, COLS);
        __syncthreads();    // both tiles are complete
        A o[2][Units::VEC] = {};
        Units::mma_ab(o, smem.a, smem.b);
        Units::for_each(o, smem.room, [&](int row, int col, A x) { params.once[row * COLS + col] = x; });
        Units::mma_ab(o, smem.a, smem.b);
        Units::for_each(o, smem.room, [&](int row, int col, A x) { params.twice[row * COLS + col] = x; });
    }
};

}  // namespace cf
