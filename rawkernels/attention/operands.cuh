// operands.cuh -- what one query head of a sequence reads, as matrices: all its queries, and the keys that are real.
#pragma once
#include "../core/matrix.cuh"
#include "mask.cuh"
#include "score.cuh"

namespace cf {

// Elements from the start of an array to a row of a head.
__device__ __forceinline__ int64_t row_of(const Strides& strides, const BatchEntry& entry, int head, int64_t row) {
    return offset_of(strides, entry, head) + row * strides.row;
}

// An array with a row for each query.
template <typename T>
__device__ __forceinline__ Matrix<T> queries_of(
    const T* data, const Strides& strides, const Span& span, int head, int cols
) {
    return {data + row_of(strides, span.entry, head, span.q_start), strides.row, strides.col, span.lq, cols};
}

// The values that a query head reads.
template <typename T>
__device__ __forceinline__ Matrix<T> values_of(const Attention<T>& problem, const Span& span, int head) {
    const Strides& strides = problem.v_strides;
    return {problem.v + row_of(strides, span.entry, head / problem.group, span.kv_start),
            strides.row, strides.col, span.kv_length, problem.dv};
}

// What the scores of a query head follow from.
template <typename T> struct QueryHead {
    Matrix<T> q, k;
    Mask mask;
    Score<Acc<T>> score;

    static __device__ __forceinline__ QueryHead of(const Attention<T>& problem, const Span& span, int head) {
        const Strides& ks = problem.k_strides;
        return {
            queries_of(problem.q, problem.q_strides, span, head, problem.d),
            {problem.k + row_of(ks, span.entry, head / problem.group, span.kv_start),
             ks.row, ks.col, span.kv_length, problem.d},
            Mask::of(problem, span, head),
            Score<Acc<T>>::of(problem, span, head),
        };
    }
};

}  // namespace cf
