// codes.cu -- probe of core/codes.cuh: every code as a number, and vectors as codes and scales.
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeCodes {
    using Code = typename StoredAs<float, CONFIG.codes>::type;
    static constexpr int LENGTH = 8;    // of a vector; a thread has one
    struct Params {
        const Code* known;      // [count]
        const float* vectors;   // [count, LENGTH]
        float* widened;         // [count], of known
        float* scales;          // [count]
        Code* codes;            // [count, LENGTH]
        int64_t count;
    };
    static constexpr int THREADS = 128, BLOCKS_PER_SM = 1, SMEM_BYTES = 0;

    static __device__ void run(const Params& params) {
        const int64_t i = thread_of_grid();
        if (i >= params.count) return;
        params.widened[i] = widen(params.known[i]);
        const float* vector = params.vectors + i * LENGTH;
        float magnitude = 0;
        for (int j = 0; j < LENGTH; ++j) {
            const float size = fabsf(vector[j]);
            if (size > magnitude || size != size) magnitude = size;     // NaN stays
        }
        const float scale = code_scale<Code>(magnitude);
        params.scales[i] = scale;
        for (int j = 0; j < LENGTH; ++j) params.codes[i * LENGTH + j] = encode<Code>(vector[j], scale);
    }
};

}  // namespace cf
