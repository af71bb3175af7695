// codes.cuh -- numbers as a quantised cache keeps them: 8 bits each, and a float32 scale for each vector. The
// arithmetic is that of cuflash/_numpy/quantised.py, step by step, so that both give the same bits; no GPU needs an
// instruction for it.
#pragma once
#include "convert.cuh"

namespace cf {

// cuflash/_params.py has the same numbers.
enum class Codes : int32_t { none, int8, float8_e4m3fn };

struct int8_code { int8_t bits; };
struct float8_e4m3fn { uint8_t bits; };  // sign, 4 bits of exponent (bias 7), 3 of fraction; no infinity

// As a cache's arrays hold numbers of dtype T.
template <typename T, Codes CODES> struct StoredAs { using type = T; };
template <typename T> struct StoredAs<T, Codes::int8> { using type = int8_code; };
template <typename T> struct StoredAs<T, Codes::float8_e4m3fn> { using type = float8_e4m3fn; };

constexpr float FLOAT8_REBIAS = 0x1p120f;   // between the biases of the exponents of float32 and float8, 127 and 7

__device__ __forceinline__ float widen(int8_code code) { return float(code.bits); }
// Exponent and fraction move to their places in a float32, a product corrects the bias; subnormal numbers included.
__device__ __forceinline__ float widen(float8_e4m3fn code) {
    const uint32_t bits = uint32_t(code.bits & 0x80u) << 24 | uint32_t(code.bits & 0x7fu) << 20;
    return __builtin_bit_cast(float, bits) * FLOAT8_REBIAS;
}

// The largest number that a code stands for, and the code nearest to a number that is no larger; ties go to even.
template <typename Code> struct CodeOf;
template <> struct CodeOf<int8_code> {
    static constexpr float LARGEST = 127;
    static __device__ __forceinline__ int8_code nearest(float x) { return {int8_t(rintf(x))}; }
};
template <> struct CodeOf<float8_e4m3fn> {
    static constexpr float LARGEST = 448;
    static __device__ __forceinline__ float8_e4m3fn nearest(float x) {
        uint32_t bits = __builtin_bit_cast(uint32_t, x * (1 / FLOAT8_REBIAS));
        bits += 0x7ffffu + (bits >> 20 & 1u);
        return {uint8_t((bits >> 20 & 0x7fu) | (bits >> 24 & 0x80u))};
    }
};

// What a vector's numbers are divided by before they are coded, from the largest magnitude among them: that gets the
// largest code. NaN where the magnitude is not finite, and 0 below what float32 holds in full.
template <typename Code> __device__ __forceinline__ float code_scale(float magnitude) {
    if (!(magnitude < infinity<float>())) return __builtin_bit_cast(float, 0x7fc00000u);
    const float scale = magnitude / CodeOf<Code>::LARGEST;
    return scale < 0x1p-126f ? 0.0f : scale;
}
// The code of a number of a vector with that scale.
template <typename Code> __device__ __forceinline__ Code encode(float x, float scale) {
    if (scale != scale) x = 0;
    return CodeOf<Code>::nearest(x / (scale > 0 ? scale : infinity<float>()));
}

}  // namespace cf
