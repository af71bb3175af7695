// copy_pages.cu -- whole pages of a paged cache to other pages: a sequence is about to write into a page that it
// shares.
//
//     array[targets[i]] = array[sources[i]]   for keys, values and their scales, whatever they hold
//
// Walk: a block owns a chunk of bytes of a page of one array; chunks count first, then arrays, then pages. Arrays with
// smaller pages leave some of their blocks nothing to do.
//
// Threads: 128, 16 bytes at a time where all pages of an array begin and end at a multiple of them, else one byte.
#include "attention/cache_params.cuh"

namespace cf {

struct CopyConfig { int chunk_bytes; };

template <CopyConfig CONFIG> struct CopyPages {
    using Params = CopyPagesParams;
    static constexpr int THREADS = 128, BLOCKS_PER_SM = 1, SMEM_BYTES = 0;
    static constexpr int CHUNK = CONFIG.chunk_bytes;
    struct alignas(16) Words { uint32_t at[4]; };
    static_assert(CHUNK % sizeof(Words) == 0, "chunks begin where words do");

    static __device__ void run(const Params& params) {
        int64_t block = blockIdx.x;
        const int64_t begin = block % params.chunks * CHUNK;
        block /= params.chunks;
        const int array = int(block % 4);
        const int64_t i = block / 4, bytes = params.bytes[array];
        uint8_t* pages = params.arrays[array];
        if (pages == nullptr || begin >= bytes) return;
        const int64_t end = least(begin + CHUNK, bytes);
        const uint8_t* from = pages + params.sources[i] * bytes;
        uint8_t* to = pages + params.targets[i] * bytes;
        if (bytes % sizeof(Words) == 0 && reinterpret_cast<uint64_t>(pages) % sizeof(Words) == 0)
            copy<Words>(to, from, begin, end);
        else
            copy<uint8_t>(to, from, begin, end);
    }

    template <typename Unit>
    static __device__ __forceinline__ void copy(uint8_t* to, const uint8_t* from, int64_t begin, int64_t end) {
        constexpr int64_t STEP = THREADS * sizeof(Unit);
#pragma unroll 4
        for (int64_t at = begin + threadIdx.x * sizeof(Unit); at < end; at += STEP)
            *reinterpret_cast<Unit*>(to + at) = *reinterpret_cast<const Unit*>(from + at);
    }
};

}  // namespace cf
