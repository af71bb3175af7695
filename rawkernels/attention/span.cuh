// span.cuh -- where a sequence starts and ends: one batch entry of dense arrays, or one member of packed ones.
#pragma once
#include "params.cuh"

namespace cf {

// Coordinates of a batch entry on the axes of `Strides::batch`.
struct BatchEntry {
    int at[BATCH_AXES];

    // Entry `index` in C order of the axes' sizes.
    static __device__ __forceinline__ BatchEntry of(int64_t index, const int32_t (&sizes)[BATCH_AXES]) {
        BatchEntry entry;
#pragma unroll
        for (int axis = BATCH_AXES - 1; axis >= 0; --axis) {
            entry.at[axis] = int(index % sizes[axis]);
            index /= sizes[axis];
        }
        return entry;
    }
    // Elements from the start of an array to this entry.
    __device__ __forceinline__ int64_t offset(const int64_t (&strides)[BATCH_AXES]) const {
        int64_t elements = 0;
#pragma unroll
        for (int axis = 0; axis < BATCH_AXES; ++axis) elements += at[axis] * strides[axis];
        return elements;
    }
};

__device__ __forceinline__ int64_t offset_of(const Strides& strides, const BatchEntry& entry, int head) {
    return entry.offset(strides.batch) + head * strides.head;
}

__device__ __forceinline__ int64_t read(const Integers& integers, const BatchEntry& entry) {
    if (integers.data == nullptr) return integers.value;
    const int64_t i = entry.offset(integers.batch);
    if (integers.bytes == 4) return static_cast<const int32_t*>(integers.data)[i];
    return largest(UNSET + 1, static_cast<const int64_t*>(integers.data)[i]);   // a number that was given
}

// One sequence: which entry it is, where its rows start in packed arrays, and its lengths.
struct Span {
    BatchEntry entry;
    int64_t q_start, kv_start;  // rows from the start of q and of k; 0 in dense arrays
    int lq, lk;
    int kv_length;      // keys that are real
    int64_t q_offset;   // position of query 0 among the keys

    template <typename T>
    static __device__ __forceinline__ Span of(const Attention<T>& problem, const BatchEntry& entry) {
        Span span;
        span.entry = entry;
        span.q_start = span.kv_start = 0;
        span.lq = problem.lq;
        span.lk = problem.lk;
        if (problem.q_starts != nullptr) {
            const int member = entry.at[BATCH_AXES - 1];
            span.q_start = problem.q_starts[member];
            span.kv_start = problem.kv_starts[member];
            span.lq = int(problem.q_starts[member + 1] - span.q_start);
            span.lk = int(problem.kv_starts[member + 1] - span.kv_start);
        }
        const int64_t offset = read(problem.q_offset, span.entry), length = read(problem.kv_lengths, span.entry);
        span.q_offset = offset == UNSET ? int64_t(span.lk) - span.lq
                                        : largest(-FARTHEST / 2, least(offset, FARTHEST / 2));
        span.kv_length = length == UNSET ? span.lk : int(largest<int64_t>(0, least<int64_t>(length, span.lk)));
        return span;
    }
};

// The tile of queries that a block owns, if it has one.
struct QueryTile {
    Span span;
    int head, q0;   // rows q0 ... q0 + Q_TILE - 1 of the sequence, those below span.lq
    bool exists;

    // Blocks count tiles first, then heads, then batch entries; the last tiles of a head, which see most keys under a
    // causal mask, come first. Packed members share the tiles of a head: member m starts at tile
    // q_starts[m] / Q_TILE + m, which leaves each enough of them whatever the lengths, so that no one has to add up
    // anything. Tiles left over do not exist.
    template <int Q_TILE, typename T>
    static __device__ __forceinline__ QueryTile of(const Attention<T>& problem, int64_t block) {
        QueryTile tile;
        int slot = problem.q_tiles - 1 - int(block % problem.q_tiles);
        block /= problem.q_tiles;
        tile.head = int(block % problem.hq);
        int64_t index = block / problem.hq;
        if (problem.q_starts != nullptr) {
            const int members = problem.batch[BATCH_AXES - 1];
            index = member_of(slot, members, [&](int m) { return int(problem.q_starts[m] / Q_TILE) + m; });
            slot -= int(problem.q_starts[index] / Q_TILE) + int(index);
        }
        tile.span = Span::of(problem, BatchEntry::of(index, problem.batch));
        tile.q0 = slot * Q_TILE;
        tile.exists = tile.q0 < tile.span.lq;
        return tile;
    }

    // The last member that starts at or before `slot`: `start` rises strictly, and start(0) is 0.
    template <typename Start>
    static __device__ __forceinline__ int member_of(int slot, int members, Start start) {
        int low = 0, high = members;    // start(low) <= slot < start(high)
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            (start(middle) <= slot ? low : high) = middle;
        }
        return low;
    }
};

// The tile of keys that a block owns, if it has one: as QueryTile, but the first tiles come first.
struct KeyTile {
    Span span;
    int head, kv0;  // key/value head; rows kv0 ... kv0 + KV_TILE - 1 of the sequence, those below span.lk
    bool exists;

    template <int KV_TILE, typename T>
    static __device__ __forceinline__ KeyTile of(const Attention<T>& problem, int hk, int kv_tiles, int64_t block) {
        KeyTile tile;
        int slot = int(block % kv_tiles);
        block /= kv_tiles;
        tile.head = int(block % hk);
        int64_t index = block / hk;
        if (problem.kv_starts != nullptr) {
            const auto start = [&](int m) { return int(problem.kv_starts[m] / KV_TILE) + m; };
            index = QueryTile::member_of(slot, problem.batch[BATCH_AXES - 1], start);
            slot -= start(int(index));
        }
        tile.span = Span::of(problem, BatchEntry::of(index, problem.batch));
        tile.kv0 = slot * KV_TILE;
        tile.exists = tile.kv0 < tile.span.lk;
        return tile;
    }
};

}  // namespace cf
