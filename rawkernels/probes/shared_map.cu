// shared_map.cu -- probe of dynamic shared memory as a map, larger than the 48 KB that a block gets without asking.
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeSharedMap {
    static constexpr int THREADS = 128, BLOCKS_PER_SM = 1;
    struct Params {
        const int32_t* x;   // [ROWS, THREADS]
        int32_t* mirrored;  // [ROWS, THREADS]: x, rows and threads in the other order
    };
    static constexpr int ROWS = 112;
    struct Smem {
        uint8_t odd[3];
        int32_t rows[ROWS][THREADS];
    };
    static constexpr int SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        Smem& smem = shared_map<Smem>();
        const int i = threadIdx.x;
        for (int row = 0; row < ROWS; ++row) smem.rows[row][i] = params.x[row * THREADS + i];
        __syncthreads();    // the map is complete
        for (int row = 0; row < ROWS; ++row)
            params.mirrored[row * THREADS + i] = smem.rows[ROWS - 1 - row][THREADS - 1 - i];
    }
};

}  // namespace cf
