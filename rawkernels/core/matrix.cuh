// matrix.cuh -- a matrix in an array, as kernels load tiles of it.
#pragma once
#include "platform.cuh"

namespace cf {

// 16 bytes of numbers.
struct alignas(16) Vector { uint32_t words[4]; };

// What lies beyond `rows` and `cols` counts as 0 and is not read. Strides in elements.
template <typename T> struct Matrix {
    const T* data;
    int64_t row_stride, col_stride;
    int rows, cols;

    // Whether the rows can be read in vectors of 16 bytes.
    __device__ __forceinline__ bool in_vectors() const {
        constexpr int VEC = 16 / sizeof(T);
        return col_stride == 1 && row_stride % VEC == 0 && reinterpret_cast<uint64_t>(data) % 16 == 0;
    }
};

}  // namespace cf
