// convert.cuh -- between numbers as they lie in arrays and numbers as they are computed with. Rounding is to nearest
// even.
#pragma once
#include "ptx.cuh"

namespace cf {

__device__ __forceinline__ float widen(float16 x) { return ptx::cvt_f32_f16(x.bits); }
__device__ __forceinline__ float widen(bfloat16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }

template <typename T> __device__ __forceinline__ T narrow(Acc<T> x);
template <> __device__ __forceinline__ float16 narrow<float16>(float x) { return {ptx::cvt_f16_f32(x)}; }
template <> __device__ __forceinline__ bfloat16 narrow<bfloat16>(float x) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};    // sm_75 has no instruction for this; NaN stays NaN
    return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ double narrow<double>(double x) { return x; }

// Element `i` of an array whose dtype is known at run time only.
template <typename A> __device__ __forceinline__ A widen_any(const void* data, Dtype dtype, int64_t i) {
    switch (dtype) {
        case Dtype::float16: return widen(static_cast<const float16*>(data)[i]);
        case Dtype::bfloat16: return widen(static_cast<const bfloat16*>(data)[i]);
        case Dtype::float32: return static_cast<const float*>(data)[i];
        default: return A(static_cast<const double*>(data)[i]);
    }
}

// The same for writing.
template <typename A> __device__ __forceinline__ void narrow_any(void* data, Dtype dtype, int64_t i, A x) {
    switch (dtype) {
        case Dtype::float16: static_cast<float16*>(data)[i] = narrow<float16>(float(x)); break;
        case Dtype::bfloat16: static_cast<bfloat16*>(data)[i] = narrow<bfloat16>(float(x)); break;
        case Dtype::float32: static_cast<float*>(data)[i] = float(x); break;
        default: static_cast<double*>(data)[i] = x;
    }
}

}  // namespace cf
