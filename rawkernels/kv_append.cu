// kv_append.cu -- new keys and values behind those that the sequences of a cache already have, as they are or as codes.
//
//     token i of entry e, i < counts[e]  ->  position lengths[s] + i of sequence s = seqs[e];   lengths[s] += counts[e]
//
// Quantised, a vector becomes codes and a scale as in core/codes.cuh. Tokens beyond what is reserved for a sequence, or
// in pages that it shares, are dropped and counted; so a graph that is replayed once too often, or after a fork, and
// lengths written by hand overwrite nothing.
//
// Walk: a warp owns one vector at a time, key or value, of a token and a head. `blocks` blocks share the vectors of an
// entry, 32 neighbours each: heads first, then tokens, then keys before values.
//
// The lengths are where the tokens go, so they may rise only when all blocks of an entry have read them: the last block
// of the entry to arrive does it (core/ticket.cuh). A second kernel would be simpler, and would double what an append
// of one token costs, which is a launch.
//
// Threads: 128, four warps. Shared memory: the ticket's word.
#include "attention/cached.cuh"
#include "attention/span.cuh"
#include "core/ticket.cuh"

namespace cf {

struct AppendConfig {
    Dtype dtype;    // of the new tokens, and of the cache unless it keeps codes
    Codes codes;
};

template <AppendConfig CONFIG> struct KvAppend {
    using T = Storage<CONFIG.dtype>;
    using Stored = typename StoredAs<T, CONFIG.codes>::type;
    using Params = AppendParams<T, Stored>;
    static constexpr int THREADS = 128, BLOCKS_PER_SM = 1;
    static constexpr int BLOCK_VECTORS = 32;

    struct Smem { uint32_t before; };
    static constexpr int SMEM_BYTES = sizeof(Smem);

    // The sequence that a block appends to, and which of the entry's tokens find room.
    struct Work {
        BatchEntry entry;
        int sequence, start, given, kept;
    };

    static __device__ void run(const Params& params) {
        const int entry = blockIdx.x / params.blocks, block = blockIdx.x % params.blocks;
        const Work work = find(params, entry);
        const int64_t vectors = 2ll * params.l * params.hk, first = int64_t(block) * BLOCK_VECTORS;
        const int64_t end = least(first + BLOCK_VECTORS, vectors);
        for (int64_t vector = first + threadIdx.x / WARP; vector < end; vector += THREADS / WARP) {
            const bool value = vector >= vectors / 2;
            const int64_t rest = value ? vector - vectors / 2 : vector;
            const int token = int(rest / params.hk), head = int(rest % params.hk);
            if (token >= work.kept) continue;
            const Place place = place_of(params.cache, work.sequence, work.start + token);
            if (!place.exists) continue;
            const Cache<Stored>& cache = params.cache;
            if (value)
                put(params.v, params.v_strides, cache.v, cache.v_strides, cache.v_scale, cache.v_scale_strides,
                    work, token, head, place, params.dv);
            else
                put(params.k, params.k_strides, cache.k, cache.k_strides, cache.k_scale, cache.k_scale_strides,
                    work, token, head, place, params.d);
        }
        if (arrives_last(params.tickets + entry, params.blocks, shared_map<Smem>().before) && threadIdx.x == 0) {
            params.lengths[work.sequence] = work.start + work.kept;
            if (work.kept < work.given) params.dropped[work.sequence] += work.given - work.kept;
        }
    }

    static __device__ __forceinline__ Work find(const Params& params, int entry) {
        Work work;
        work.entry = {{0, 0, 0, entry}};
        work.sequence = params.seqs == nullptr ? entry : params.seqs[entry];
        work.start = params.lengths[work.sequence];
        work.given = int(largest<int64_t>(0, least<int64_t>(read(params.counts, work.entry), params.l)));
        int64_t room = room_of(params.cache);
        if (params.reserved != nullptr) room = least<int64_t>(room, params.reserved[work.sequence]);
        const int first = params.shared == nullptr ? 0 : params.shared[work.sequence];
        const int64_t left = work.start < first ? 0 : largest<int64_t>(0, room - work.start);
        work.kept = int(least<int64_t>(work.given, left));
        return work;
    }

    // One vector, by a warp.
    static __device__ __forceinline__ void put(
        const T* from, const Strides& from_strides, Stored* to, const TokenStrides& to_strides, float* scales,
        const TokenStrides& scale_strides, const Work& work, int token, int head, const Place& place, int dim
    ) {
        const int lane = threadIdx.x % WARP;
        from += offset_of(from_strides, work.entry, head) + token * from_strides.row;
        to += place.offset(to_strides, head);
        if constexpr (CONFIG.codes == Codes::none) {
            for (int col = lane; col < dim; col += WARP) to[col * to_strides.col] = from[col * from_strides.col];
        } else {
            float magnitude = 0;
            for (int col = lane; col < dim; col += WARP) {
                const float x = fabsf(widen(from[col * from_strides.col]));
                if (x > magnitude || x != x) magnitude = x;     // a NaN stays
            }
#pragma unroll
            for (int other = 1; other < WARP; other *= 2) {
                const float x = __shfl_xor_sync(ALL_LANES, magnitude, other);
                if (x > magnitude || x != x) magnitude = x;
            }
            const float scale = code_scale<Stored>(magnitude);
            for (int col = lane; col < dim; col += WARP)
                to[col * to_strides.col] = encode<Stored>(widen(from[col * from_strides.col]), scale);
            if (lane == 0) scales[place.offset(scale_strides, head)] = scale;
        }
    }
};

}  // namespace cf
