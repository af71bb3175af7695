// score.cuh -- what happens to a product q . k before the softmax: scale, softcap, bias, slopes. In this order.
#pragma once
#include "span.cuh"

namespace cf {

template <typename A> struct Score {
    A scale, softcap;           // softcap 0: none
    const void* bias;           // or null; this batch entry and head start at element `bias_start`
    Dtype bias_dtype;
    int64_t bias_start, row_stride, col_stride;
    A slope;                    // 0: none
    int64_t q_offset;

    // `problem` is Attention, or whatever else names its scale, softcap, bias and slopes so.
    template <typename Problem>
    static __device__ __forceinline__ Score of(const Problem& problem, const Span& span, int head) {
        const Strides& strides = problem.bias.strides;
        const Reals& slopes = problem.slopes;
        return {
            A(problem.scale), A(problem.softcap),
            problem.bias.data, problem.bias.dtype, offset_of(strides, span.entry, head), strides.row, strides.col,
            slopes.data == nullptr ? A(0) : widen_any<A>(slopes.data, slopes.dtype, head * slopes.strides.head),
            span.q_offset,
        };
    }

    // Whether a score is its product times `scale`, here and in all heads.
    __device__ __forceinline__ bool plain() const { return softcap == A(0) && bias == nullptr && slope == A(0); }
    template <typename Problem> static __device__ __forceinline__ bool plain(const Problem& problem) {
        return problem.softcap == 0 && problem.bias.data == nullptr && problem.slopes.data == nullptr;
    }

    // The score of an element that is visible, from its product.
    __device__ __forceinline__ A operator()(A product, int row, int key) const {
        A bend;
        return (*this)(product, row, key, bend);
    }
    // The same; `bend` becomes d score / d (product * scale), which is 1 without a softcap.
    __device__ __forceinline__ A operator()(A product, int row, int key, A& bend) const {
        A s = rounded_product(product, scale);
        bend = 1;
        if (softcap != A(0)) {
            const A t = tanh_of(s / softcap);
            s = softcap * t;
            bend -= t * t;
        }
        if (bias != nullptr)
            s += widen_any<A>(in_global(bias), bias_dtype, bias_start + row * row_stride + key * col_stride);
        if (slope != A(0)) s -= slope * A(row + q_offset < key ? key - (row + q_offset) : row + q_offset - key);
        return s;
    }
};

}  // namespace cf
