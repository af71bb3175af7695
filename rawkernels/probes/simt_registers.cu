// simt_registers.cu -- probe of Simt::get, scale and put: a tile through the registers of its owners and back.
#include "../core/simt_tile.cuh"
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeSimtRegisters {
    using A = Storage<CONFIG.dtype>;
    using Units = Simt<A>;
    static constexpr int ROWS = 4 * Units::ROW_THREADS, COLS = 2 * Units::COL_THREADS;
    struct Params {
        const A* x;         // [ROWS, COLS]
        A* scaled;          // [ROWS, COLS]
        A* rows;            // [ROWS, COLS]: the number of the thread's row group that owns an element
    };
    struct Smem {
        SimtTile<A, ROWS, COLS> in, out;
    };
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = 1, SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        Smem& smem = shared_map<Smem>();
        Units::load(smem.in, params.x, COLS, 1, ROWS, COLS);
        __syncthreads();    // the tile is complete
        A s[4][2], owner[4][2];
        Units::get(s, smem.in);
        Units::scale(s, A(-2));
        Units::put(smem.out, s);
        for (auto& row : owner)
            for (A& element : row) element = A(Units::y());
        __syncthreads();    // all have read `in`, and `out` is complete
        Units::put(smem.in, owner);
        __syncthreads();    // the owners are complete
        for (int i = threadIdx.x; i < ROWS * COLS; i += THREADS) {
            params.scaled[i] = smem.out.at(i / COLS, i % COLS);
            params.rows[i] = smem.in.at(i / COLS, i % COLS);
        }
    }
};

}  // namespace cf
