// platform.cuh -- the words every other file is written in: integers of fixed width, the dtypes of arrays, and the type
// that each is computed in. NVRTC finds no header of C or CUDA, and none is needed.
#pragma once

namespace cf {

using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
static_assert(sizeof(int32_t) == 4 && sizeof(int64_t) == 8 && sizeof(void*) == 8, "the widths that params.cuh packs");

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int ARCH = __CUDA_ARCH__ / 10;    // 80 is compute capability 8.0
constexpr int64_t INT64_LEAST = -0x7fffffffffffffffLL - 1;

// As in an array's memory; arithmetic is done in `Acc` below.
struct float16 { uint16_t bits; };
struct bfloat16 { uint16_t bits; };

// cuflash/_params.py has the same numbers.
enum class Dtype : int32_t { float16, bfloat16, float32, float64 };

template <Dtype DTYPE> struct StorageOf;
template <> struct StorageOf<Dtype::float16> { using type = float16; };
template <> struct StorageOf<Dtype::bfloat16> { using type = bfloat16; };
template <> struct StorageOf<Dtype::float32> { using type = float; };
template <> struct StorageOf<Dtype::float64> { using type = double; };
template <Dtype DTYPE> using Storage = typename StorageOf<DTYPE>::type;

template <typename T> struct AccOf { using type = float; };
template <> struct AccOf<double> { using type = double; };
template <typename T> using Acc = typename AccOf<T>::type;

template <typename A> __device__ __forceinline__ constexpr A infinity();
template <> __device__ __forceinline__ constexpr float infinity<float>() {
    return __builtin_bit_cast(float, 0x7f800000u);
}
template <> __device__ __forceinline__ constexpr double infinity<double>() {
    return __builtin_bit_cast(double, 0x7ff0000000000000ull);
}

template <typename N> __device__ __forceinline__ constexpr N least(N a, N b) { return b < a ? b : a; }
template <typename N> __device__ __forceinline__ constexpr N largest(N a, N b) { return a < b ? b : a; }

// a * b, rounded: never a part of a fused multiply-add, which would subtract from a product with all its digits the
// very product rounded. Half a unit in the last place of a large score is a large exponent.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// Quotient of positive integers, rounded up.
template <typename N> __device__ __forceinline__ constexpr N ceil_div(N a, N b) { return (a + b - 1) / b; }

// Tells the compiler that a pointer it finds in shared memory points into global memory.
template <typename T> __device__ __forceinline__ const T* in_global(const T* pointer) {
    __builtin_assume(__isGlobal(pointer));
    return pointer;
}

// The block's dynamic shared memory as a map of it.
template <typename Map> __device__ __forceinline__ Map& shared_map() {
    extern __shared__ __align__(1024) uint8_t dynamic_smem[];
    return *reinterpret_cast<Map*>(dynamic_smem);
}

// Puts what the block is about to work on into its shared memory, which spares each thread some forty registers. `find`
// returns it; one thread calls it.
template <typename What, typename Find> __device__ __forceinline__ void publish(What& what, Find find) {
    __syncthreads();    // all have done with what was there
    if (threadIdx.x == 0) what = find();
    __syncthreads();    // it is complete
}

}  // namespace cf
