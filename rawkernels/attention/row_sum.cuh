// row_sum.cuh -- what is left of a row's scores s: their maximum, and the sum of exp(s - max). They stay two numbers
// until nothing more is to be merged, since a large max + log(sum) is rounded, and weights that are computed from it
// with it. Outputs that are not divided by their sum yet are relative to the same maximum.
#pragma once
#include "../core/simt_tile.cuh"
#include "params.cuh"

namespace cf {

// A row that has seen no key has max -inf and sum 0, and ends as output 0 and lse -inf.
template <typename A> struct RowSum {
    A max, sum;

    __device__ __forceinline__ A lse() const { return sum == A(0) ? -infinity<A>() : max + log_of(sum); }
    __device__ __forceinline__ A divide(A number) const { return sum == A(0) ? A(0) : number / sum; }
};

// A row's lse, or its maximum and sum where these are wanted, to element `at` of theirs.
template <typename T>
__device__ __forceinline__ void store_sum(const FwdParams<T>& params, int64_t at, const RowSum<Acc<T>>& row) {
    params.lse[at] = params.sum == nullptr ? row.lse() : row.max;
    if (params.sum != nullptr) params.sum[at] = row.sum;
}

}  // namespace cf
