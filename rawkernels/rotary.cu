// rotary.cu -- rotary position embedding (Su et al. 2021, arXiv:2104.09864): pairs of features turned by angles that
// grow with the position.
//
//     angle = position * freqs[i],   (first, second) -> (first cos - second sin, second cos + first sin)
//
// Features from `dim` on stay as they are. Angles, their sines and cosines are taken in float64 whatever the dtype: a
// float32 angle of 1e5 radians would be wrong in its third decimal place.
//
// Walk: a thread owns one pair (or one feature that stays) of a row of up to HEADS heads, which share its angle. Pairs
// and features that stay count first, then rows, then chunks of heads, then batch entries. Threads: 128.
#include "attention/cache_params.cuh"
#include "attention/span.cuh"

namespace cf {

struct RotaryConfig { Dtype dtype; };

template <RotaryConfig CONFIG> struct Rotary {
    using T = Storage<CONFIG.dtype>;
    using A = Acc<T>;
    using Params = RotaryParams<T>;
    static constexpr int THREADS = 128, BLOCKS_PER_SM = 1, SMEM_BYTES = 0;
    static constexpr int HEADS = 8;

    static __device__ void run(const Params& params) {
        const int pairs = params.dim / 2, items = params.d - pairs;
        int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x;
        const int item = int(index % items);
        index /= items;
        const int row = int(index % params.rows);
        index /= params.rows;
        const int chunks = ceil_div(params.heads, HEADS), head0 = int(index % chunks) * HEADS;
        index /= chunks;
        if (index >= params.entries) return;
        const BatchEntry entry = BatchEntry::of(index, params.batch);
        const Strides &xs = params.x_strides, &os = params.out_strides;
        const T* x = params.x + offset_of(xs, entry, head0) + row * xs.row;
        T* out = params.out + offset_of(os, entry, head0) + row * os.row;
        const int heads = least(HEADS, params.heads - head0);

        if (item >= pairs) {
            const int col = pairs + item;
            for (int head = 0; head < heads; ++head)
                out[head * os.head + col * os.col] = x[head * xs.head + col * xs.col];
            return;
        }
        const Strides& ps = params.positions.strides;
        const double position = number_at(params.positions, entry.offset(ps.batch) + row * ps.row);
        const double angle = position * number_at(params.freqs, item * params.freqs.strides.col);
        double wide_sin, wide_cos;
        sincos(angle, &wide_sin, &wide_cos);
        const A sin_angle = A(wide_sin), cos_angle = A(wide_cos);
        const int first = params.interleaved ? 2 * item : item, second = params.interleaved ? first + 1 : first + pairs;
        for (int head = 0; head < heads; ++head) {
            const A a = widen(x[head * xs.head + first * xs.col]), b = widen(x[head * xs.head + second * xs.col]);
            out[head * os.head + first * os.col] = narrow<T>(a * cos_angle - b * sin_angle);
            out[head * os.head + second * os.col] = narrow<T>(b * cos_angle + a * sin_angle);
        }
    }

    static __device__ __forceinline__ double number_at(const Numbers& numbers, int64_t i) {
        switch (numbers.kind) {
            case NumberKind::int32: return static_cast<const int32_t*>(numbers.data)[i];
            case NumberKind::int64: return double(static_cast<const int64_t*>(numbers.data)[i]);
            case NumberKind::float32: return static_cast<const float*>(numbers.data)[i];
            default: return static_cast<const double*>(numbers.data)[i];
        }
    }
};

}  // namespace cf
