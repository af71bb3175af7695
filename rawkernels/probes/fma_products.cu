// fma_products.cu -- probe of core/fma_tile.cuh: s = a @ b^T, its rows' maxima, and s @ v, each warp with a b and a v
// of its own. With whole numbers, so that no order of a sum could show.
#include "../core/fma_tile.cuh"
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeFmaProducts {
    static constexpr int WARPS = 4, DEPTH = 64, COLS = 128;
    using Units = Fma<8, DEPTH, COLS>;
    static constexpr int ROWS = Units::ROWS, KEYS = Units::TILE, OWN = Units::OWN;
    struct Params {
        const float* a;     // [ROWS, DEPTH]
        const float* b;     // [WARPS, KEYS, DEPTH]
        const float* v;     // [WARPS, KEYS, COLS]
        float* s;           // [WARPS, ROWS, KEYS]
        float* tops;        // [WARPS, ROWS]
        float* out;         // [WARPS, ROWS, COLS]
    };
    struct Smem {
        FmaTile<KEYS, DEPTH> b[WARPS];
        FmaTile<KEYS, COLS> v[WARPS];
        alignas(16) float p[WARPS][OWN][WARP];
    };
    static constexpr int THREADS = WARPS * WARP, BLOCKS_PER_SM = 1, SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        Smem& smem = shared_map<Smem>();
        const int warp = Units::warp();
        const float *b = params.b + warp * KEYS * DEPTH, *v = params.v + warp * KEYS * COLS;
        for (int i = Units::lane(); i < KEYS * DEPTH; i += WARP) smem.b[warp].data[i] = b[i];
        for (int i = Units::lane(); i < KEYS * COLS; i += WARP) smem.v[warp].data[i] = v[i];
        typename Units::Left a;
        for (int r = 0; r < ROWS; ++r)
            for (int chunk = 0; chunk < Units::CHUNKS; ++chunk)
                for (int i = 0; i < 4; ++i) a[r][chunk].at[i] = params.a[r * DEPTH + Units::left_col(chunk) + i];
        __syncwarp();       // the warp's tiles are there

        float s[OWN], o[ROWS][Units::LANE_COLS] = {}, top = -infinity<float>();
        Units::mma_abt(s, a, smem.b[warp]);
        const int row = warp * ROWS + Units::row();
        for (int i = 0; i < OWN; ++i) {
            params.s[row * KEYS + Units::col(i)] = s[i];
            top = largest(top, s[i]);
        }
        top = Units::row_max(top);
        if (Units::col(0) == 0) params.tops[row] = top;
        Units::put(smem.p[warp], s);
        __syncwarp();       // the weights are there
        Units::mma_ab(o, smem.p[warp], smem.v[warp]);
        for (int r = 0; r < ROWS; ++r)
            for (int c = 0; c < Units::LANE_COLS; ++c)
                params.out[(warp * ROWS + r) * COLS + Units::out_col(c)] = o[r][c];
    }
};

}  // namespace cf
