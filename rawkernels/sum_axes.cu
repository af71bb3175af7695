// sum_axes.cu -- sums over some axes of an array, in the order in which the host lists them, the last one fastest:
//
//     out[kept...] = sum over the other axes of in[...]
//
// The input is of the dtype that it is summed in, the output of any. It finishes gradients of what was broadcast.
//
// Tile walk: a block owns 128 neighbouring elements of the output.
// Threads: 128; one element each. Shared memory: none. Limits: KEPT_AXES and SUMMED_AXES.
#include "attention/config.cuh"
#include "attention/params.cuh"

namespace cf {

template <ElementConfig CONFIG> struct SumAxes {
    using A = Storage<CONFIG.dtype>;
    using Params = SumAxesParams<A>;
    static constexpr int THREADS = 128, BLOCKS_PER_SM = 1, SMEM_BYTES = 0;

    static __device__ void run(const Params& params) {
        int64_t rest = int64_t(blockIdx.x) * THREADS + threadIdx.x, from = 0, to = 0;
        if (rest >= params.elements) return;
#pragma unroll
        for (int axis = KEPT_AXES - 1; axis >= 0; --axis) {
            const int64_t i = rest % params.sizes[axis];
            rest /= params.sizes[axis];
            from += i * params.in_strides[axis];
            to += i * params.out_strides[axis];
        }
        narrow_any(params.out, params.dtype, to, sum(params, params.in + from));
    }

    static __device__ __forceinline__ A sum(const Params& params, const A* input) {
        int64_t left = 1, at[SUMMED_AXES] = {};
#pragma unroll
        for (int axis = 0; axis < SUMMED_AXES; ++axis) left *= params.summed_sizes[axis];
        A total = 0;
        for (; left > 0; --left) {
            total += *input;
            // On to the next element: the last axis moves on, and where one ends, the one before it.
#pragma unroll
            for (int axis = SUMMED_AXES - 1; axis >= 0; --axis) {
                input += params.summed_strides[axis];
                if (++at[axis] < params.summed_sizes[axis]) break;
                input -= at[axis] * params.summed_strides[axis];
                at[axis] = 0;
            }
        }
        return total;
    }
};

}  // namespace cf
