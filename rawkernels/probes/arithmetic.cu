// arithmetic.cu -- probe of what C++ itself becomes: IEEE quotients, products and sums that are rounded once, rounding
// to integers, subnormal numbers kept, and quotients and remainders of 64-bit integers.
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeArithmetic {
    using A = Storage<CONFIG.dtype>;
    struct Params {
        const A *a, *b, *c;         // [count]
        const int64_t *m, *n;       // [count]; n is not 0
        A *quotient, *fused, *rounded;          // [count]: a / b, a * b + c, a to an integer
        int64_t *whole, *rest, *product;        // [count]: m / n, m % n, m * n
        int64_t count;
    };
    static constexpr int THREADS = 128, BLOCKS_PER_SM = 1, SMEM_BYTES = 0;

    static __device__ void run(const Params& params) {
        const int64_t i = thread_of_grid();
        if (i >= params.count) return;
        const A a = params.a[i], b = params.b[i];
        params.quotient[i] = a / b;
        params.fused[i] = a * b + params.c[i];
        params.rounded[i] = round_to_integer(a);
        params.whole[i] = params.m[i] / params.n[i];
        params.rest[i] = params.m[i] % params.n[i];
        params.product[i] = params.m[i] * params.n[i];
    }

    static __device__ __forceinline__ float round_to_integer(float x) { return rintf(x); }
    static __device__ __forceinline__ double round_to_integer(double x) { return rint(x); }
};

}  // namespace cf
