// decode_stage.cuh -- 16 tokens of a cache in shared memory, for one warp of decode_mma: their keys and values are
// numbers of 16 bits, or codes with a scale each. What they are is nobody else's business.
#pragma once
#include "../core/code_tile.cuh"
#include "cached.cuh"

namespace cf {

constexpr int STAGE_KEYS = 16;

// Codes. Products of keys are scaled afterwards, in float32; for values it is their weights that are scaled.
template <Dtype DTYPE, Codes CODES, int WARPS, int HEAD_DIM, int VALUE_DIM> struct DecodeStage {
    using Code = typename StoredAs<void, CODES>::type;
    using Warp = Mma<DTYPE, WARPS>;
    using Units = CodeMma<DTYPE, Code, WARPS>;
    static constexpr float OUTPUT_UNIT = Units::OUTPUT_UNIT;
    CodeTile<STAGE_KEYS, HEAD_DIM> k;
    CodeTile<STAGE_KEYS, VALUE_DIM> v;
    float scales[2][STAGE_KEYS];    // of keys, of values

    // Where queries must have a feature in shared memory, and which column number i of fragment n of the output is.
    static __device__ __forceinline__ int feature_at(int feature) { return Units::feature_at(feature); }
    static __device__ __forceinline__ int col(int n, int i) { return Units::col(n, i); }

    // Begins to copy the scales of 16 tokens; lanes i and 16 + i have the place of token i.
    __device__ __forceinline__ void load_scales(const Cache<Code>& cache, const Place& place, int head) {
        const int lane = Warp::lane(), of = lane / STAGE_KEYS;
        const float* from = of == 0 ? cache.k_scale : cache.v_scale;
        const int64_t k_at = place.offset(cache.k_scale_strides, head);
        const int64_t at = of == 0 ? k_at : place.offset(cache.v_scale_strides, head);
        float* to = &scales[of][lane % STAGE_KEYS];
        const uint32_t address = uint32_t(__cvta_generic_to_shared(to));
        ptx::cp_async_4(address, from + (place.exists ? at : 0), place.exists ? 4 : 0);
    }

    // s += q @ k^T
    template <int M, typename TileQ>
    __device__ __forceinline__ void add_scores(float (&s)[M][2][4], const TileQ& q) const {
        Units::mma_abt(s, q, k);
        float factors[2][2];
        scales_of(factors, 0);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) s[m][n][i] = s[m][n][i] * Units::PRODUCT_UNIT * factors[n][i % 2];
    }
    // o += weights @ v
    template <int M, int N>
    __device__ __forceinline__ void add_values(float (&o)[M][N][4], const float (&weights)[M][2][4]) const {
        float factors[2][2];
        scales_of(factors, 1);
        uint32_t p[Units::PARTS][M][4];
        Units::to_operand(p, weights, factors);
        Units::mma_ab(o, p, v);
    }

  private:
    // Those of the tokens that are columns of this lane's fragments.
    __device__ __forceinline__ void scales_of(float (&factors)[2][2], int of) const {
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) factors[n][i] = scales[of][Warp::col(n, i)];
    }
};

// Numbers of the queries' own dtype.
template <Dtype DTYPE, int WARPS, int HEAD_DIM, int VALUE_DIM>
struct DecodeStage<DTYPE, Codes::none, WARPS, HEAD_DIM, VALUE_DIM> {
    using Units = Mma<DTYPE, WARPS>;
    static constexpr float OUTPUT_UNIT = 1;
    MmaTile<STAGE_KEYS, HEAD_DIM> k;
    MmaTile<STAGE_KEYS, VALUE_DIM> v;

    static __device__ __forceinline__ int feature_at(int feature) { return feature; }
    static __device__ __forceinline__ int col(int n, int i) { return Units::col(n, i); }

    template <int M, typename TileQ>
    __device__ __forceinline__ void add_scores(float (&s)[M][2][4], const TileQ& q) const {
        Units::mma_abt(s, q, 0, k);
    }
    template <int M, int N>
    __device__ __forceinline__ void add_values(float (&o)[M][N][4], const float (&weights)[M][2][4]) const {
        uint32_t p[M][1][4];
        Units::to_operand(p, weights);
        Units::mma_ab(o, p, v);
    }
};

}  // namespace cf
