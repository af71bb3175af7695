// probe.cuh -- what the probes share. A probe is a kernel that does one thing of core/ with all the numbers it is given
// and writes all that came of it, so that an emulator and a GPU can be compared. tests/probes.py has the numbers.
#pragma once
#include "../core/codes.cuh"

namespace cf {

struct ProbeConfig {
    Dtype dtype = Dtype::float32;
    Codes codes = Codes::none;
};

// Number of this thread among those of all blocks.
__device__ __forceinline__ int64_t thread_of_grid() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

}  // namespace cf
