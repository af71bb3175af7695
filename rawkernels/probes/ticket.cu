// ticket.cu -- probe of core/ticket.cuh: groups of blocks, of which the last to arrive adds up what all have written. A
// second launch on the same counters must find them ready.
#include "../core/ticket.cuh"
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeTicket {
    struct Params {
        const int32_t* x;       // [groups, parts, THREADS]
        uint32_t* counters;     // [groups], 0
        int32_t* parts;         // [groups, parts, THREADS], what each block has written: x doubled
        int32_t* sums;          // [groups, THREADS]
        int32_t* finishers;     // [groups], raised by every block that takes itself for the last
        int64_t count;          // parts of a group
    };
    struct Smem {
        uint32_t before;
    };
    static constexpr int THREADS = 128, BLOCKS_PER_SM = 1, SMEM_BYTES = sizeof(Smem);

    static __device__ void run(const Params& params) {
        const int group = blockIdx.x / int(params.count), parts = int(params.count);
        params.parts[thread_of_grid()] = 2 * params.x[thread_of_grid()];
        if (!arrives_last(params.counters + group, parts, shared_map<Smem>().before)) return;
        int32_t sum = 0;
        for (int part = 0; part < parts; ++part) sum += params.parts[(group * parts + part) * THREADS + threadIdx.x];
        params.sums[group * THREADS + threadIdx.x] = sum;
        if (threadIdx.x == 0) params.finishers[group] += 1;
    }
};

}  // namespace cf
