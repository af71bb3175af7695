// ptx.cuh -- one function per PTX instruction that C++ has no word for; the only inline assembly in the tree. A
// function does what its instruction does and no more. Section numbers are those of the PTX ISA 8.5.
#pragma once
#include "platform.cuh"

namespace cf::ptx {

// cvt (9.7.9.21): float16 to float32, exact.
__device__ __forceinline__ float cvt_f32_f16(uint16_t bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

// cvt (9.7.9.21): float32 to float16, to nearest even.
__device__ __forceinline__ uint16_t cvt_f16_f32(float x) {
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// atom.add (9.7.13.5) on global memory with acquire and release at the scope of the device: whoever draws a later
// number sees all that this thread has seen written. Returns the value before.
__device__ __forceinline__ uint32_t atom_add_acq_rel_gpu(uint32_t* counter, uint32_t n) {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(n) : "memory");
    return before;
}

}  // namespace cf::ptx
