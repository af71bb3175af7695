// fragment_softmax.cuh -- softmax(s) @ v over tiles of keys, as online_softmax.cuh has it, for the fragments of
// core/mma_tile.cuh. Two things differ, both for speed:
//
//   - weights are powers of 2, (s - base) * factor being the exponent, so that a score needs no exp. (A fused
//     s * factor - base * factor would save an instruction, and be off by the rounding of the second product: inf for
//     large scores.)
//   - `base` follows the maximum of a row only when that has outgrown it by a factor of 256. Weights are then at most
//     256, sums and outputs are taken relative to the same base throughout, and so the result is the same but for
//     rounding; most tiles need not touch the output (FlashAttention-4's rule). The rows of a fragment move together.
#pragma once
#include "../core/mma_tile.cuh"
#include "row_sum.cuh"

namespace cf {

constexpr float LOG2_E = 1.4426950408889634f;

// Whether products may stand for scores that are `unit` times as large: the exponent's factor is a number, and where
// the difference of two products is none, that of their scores is so large that its power is 0.
__device__ __forceinline__ bool serves_as_unit(float unit) {
    return unit >= 0x1p-100f && unit * LOG2_E < infinity<float>();
}

// State of the 2 M rows of a lane. `sum` is over the lane's own columns until `finish`. A row that has seen no key has
// base -inf and sum 0 (row_sum.cuh).
template <typename Units, int M> struct FragmentSoftmax {
    static constexpr float GROWTH = 8;  // of the exponent, before base follows
    float base[M][2], sum[M][2];

    __device__ __forceinline__ void start() {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) { base[m][half] = -infinity<float>(); sum[m][half] = 0; }
    }

    // Scores become weights in place; o is scaled where base moves. `factor` is positive.
    template <int N, int C>
    __device__ __forceinline__ void step(float (&s)[M][N][4], float (&o)[M][C][4], float factor) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
            float top[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float x = -infinity<float>();
#pragma unroll
                for (int n = 0; n < N; ++n) x = largest(largest(x, s[m][n][2 * half]), s[m][n][2 * half + 1]);
                top[half] = Units::quad_max(x);
            }
            // False where both are -inf.
            const bool grown = (top[0] - base[m][0]) * factor > GROWTH || (top[1] - base[m][1]) * factor > GROWTH;
            if (__any_sync(ALL_LANES, grown)) move(m, o[m], top, factor);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float origin = finite(base[m][half]);
                float tile_sum = 0;
#pragma unroll
                for (int n = 0; n < N; ++n)
#pragma unroll
                    for (int i = 2 * half; i < 2 * half + 2; ++i)
                        tile_sum += s[m][n][i] = ptx::ex2((s[m][n][i] - origin) * factor);
                sum[m][half] += tile_sum;
            }
        }
    }

    // What is left of a row, `unit` being what 1 of a product is worth in it; its output times `scale` is relative to
    // that maximum. `sink` is a logit that carries no value, or -inf.
    struct Finished { RowSum<float> sum; float scale; };
    __device__ __forceinline__ Finished finish(int m, int half, float unit, float sink) const {
        const float weights = Units::quad_sum(sum[m][half]);
        const float own = rounded_product(base[m][half], unit);
        const float top = largest(own, sink), shift = finite(top);
        const float scale = ptx::ex2((own - shift) * LOG2_E);
        return {{top, weights * scale + ptx::ex2((sink - shift) * LOG2_E)}, scale};
    }

  private:
    template <int C>
    __device__ __forceinline__ void move(int m, float (&o)[C][4], const float (&top)[2], float factor) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float next = largest(base[m][half], top[half]);
            const float shrink = ptx::ex2((base[m][half] - finite(next)) * factor);
            base[m][half] = next;
            sum[m][half] *= shrink;
#pragma unroll
            for (int n = 0; n < C; ++n) { o[n][2 * half] *= shrink; o[n][2 * half + 1] *= shrink; }
        }
    }
    // Stands in for a maximum that there is none of, so that -inf is never subtracted from -inf.
    static __device__ __forceinline__ float finite(float x) { return x == -infinity<float>() ? 0.0f : x; }
};

}  // namespace cf
