// decode_work.cuh -- what a block of a decoding kernel owns: some of the queries that share a key/value head, and a
// part of the keys that they see. And how the results of the parts become those of the queries.
#pragma once
#include "../core/ticket.cuh"
#include "cached.cuh"
#include "mask.cuh"
#include "split.cuh"

namespace cf {

// Packed rows row0 ... row1 - 1 of a key/value head: its queries token by token (row = i * group + head of the group),
// so that a key is read once for all of them.
struct DecodeWork {
    int64_t tile;       // among those of all sequences and heads
    int64_t first_row;  // of the key/value head, among the packed rows of all
    int entry, kv_head, row0, row1, group, sequence, part;
    int first_query;    // those before it see nothing
    bool whole;         // the part is all that the queries see: its results are theirs
    Span span;
    Mask mask;
    KeyPart keys;

    // Number `index` of the items of an entry, which count tiles of queries first, since these share their keys; then
    // `parts` parts, and heads.
    template <int Q_TILE, typename Params>
    static __device__ __forceinline__ DecodeWork of(const Params& params, int entry, int parts, int64_t index) {
        DecodeWork work;
        work.group = params.hq / params.hk;
        const int rows = work.group * params.lq, tiles = ceil_div(rows, Q_TILE);
        const int tile = int(index % tiles);
        index /= tiles;
        work.part = int(index % parts);
        work.kv_head = int(index / parts);
        work.entry = entry;
        const int64_t head = int64_t(entry) * params.hk + work.kv_head;
        work.tile = head * tiles + tile;
        work.first_row = head * rows;
        work.row0 = tile * Q_TILE;
        work.row1 = least(work.row0 + Q_TILE, rows);
        work.sequence = sequence_of(params, entry);

        const bool cached = params.lengths != nullptr;
        work.mask = mask_of(params, work.sequence);
        const int64_t q_offset = work.mask.q_offset;
        work.first_query = cached ? int(largest<int64_t>(0, -q_offset)) : 0;
        work.span = {{{0, 0, 0, work.entry}}, 0, 0, params.lq, work.mask.kv_length, work.mask.kv_length, q_offset};
        const int first = work.mask.first(work.query(work.row0)), end = work.mask.end(work.query(work.row1 - 1));
        work.keys = KeyPart::of(work.part, first, end, params.part_keys, params.splits);
        const bool apart = params.tickets == nullptr && params.parts > 1;   // then each part has results, if empty ones
        work.whole = work.keys.count == 1 && !apart;
        work.keys.exists |= apart;
        return work;
    }

    // How many parts the tiles of an entry have, at the most.
    template <typename Params> static __device__ __forceinline__ int parts_of(const Params& params, int entry) {
        const Mask mask = mask_of(params, sequence_of(params, entry));
        return KeyPart::of(0, mask.first(0), mask.end(params.lq - 1), params.part_keys, params.splits).count;
    }
    template <typename Params> static __device__ __forceinline__ int sequence_of(const Params& params, int entry) {
        return params.seqs == nullptr ? entry : params.seqs[entry];
    }
    // Of the tokens of a sequence no more than `limit` are looked at, but the queries stand behind them all.
    template <typename Params> static __device__ __forceinline__ Mask mask_of(const Params& params, int sequence) {
        const int tokens = params.lengths == nullptr ? params.limit : largest(0, params.lengths[sequence]);
        const int64_t q_offset = params.q_offset == UNSET ? int64_t(tokens) - params.lq : params.q_offset;
        return {q_offset, params.left, params.right, least(tokens, params.limit), 0, nullptr, 0, 0};
    }

    __device__ __forceinline__ int query(int row) const { return row / group; }
    __device__ __forceinline__ int head(int row) const { return kv_head * group + row % group; }

    // A query of the tile sees the keys first_key ... end_key - 1 of the part; one at a negative position of a cache,
    // and a row beyond the last, none.
    __device__ __forceinline__ int first_key(int row) const { return mask.first(query(row)); }
    __device__ __forceinline__ int end_key(int row) const {
        const bool sees = row < row1 && query(row) >= first_query;
        return sees ? least(mask.end(query(row)), keys.end) : 0;
    }

    // Elements from the start of an array [b, hq, lq, ...] to a packed row.
    __device__ __forceinline__ int64_t row_of(const Strides& strides, int row) const {
        return offset_of(strides, span.entry, head(row)) + query(row) * strides.row;
    }
    // And to that row of this part in the workspace, in rows.
    template <typename Params> __device__ __forceinline__ int64_t slot(const Params& params, int row) const {
        return (first_row + row) * params.parts + part;
    }
    // Whether this block, which has done its part, is the one to merge those of the tile; `before` as for arrives_last.
    template <typename Params> __device__ __forceinline__ bool merges(const Params& params, uint32_t& before) const {
        if (whole || params.tickets == nullptr) return false;
        return arrives_last(params.tickets + tile, keys.count, before);
    }
};

// What a block works on. Where all items that there can be, of sequences as long as the host's bound, fit the GPU
// twice, each has a block, and those of no part leave at once. Else, `listed`, fewer blocks share the items that there
// are, one after another: each finds its own by adding up the parts of 32 entries at a time, as many as it has lanes to
// read their lengths.
template <int Q_TILE, typename Params> struct DecodeItems {
    int64_t item, before;   // number of the next one; how many belong to entries before `entry`
    int entry;

    static __device__ __forceinline__ DecodeItems of() { return {blockIdx.x, 0, 0}; }

    // Calls `attend` for each, by all threads; the shared memory of one is free before the next.
    template <typename Attend> __device__ __forceinline__ void for_each(const Params& params, Attend attend) {
        const int of_part = params.hk * int(ceil_div(params.hq / params.hk * params.lq, Q_TILE));
#pragma unroll 1
        while (true) {
            int parts = params.parts;
            if (params.listed) {
                if (!find(params, of_part)) return;
                parts = DecodeWork::parts_of(params, entry);
            } else {
                const int64_t of_entry = int64_t(of_part) * parts;
                entry = int(item / of_entry);
                before = entry * of_entry;
            }
            const auto work = DecodeWork::of<Q_TILE>(params, entry, parts, item - before);
            if (work.keys.exists) attend(work);
            if (!params.listed) return;
            __syncthreads();    // all have done with what they share
            item += gridDim.x;
        }
    }

  private:
    // Whether there is such an item; `entry` becomes the one that it belongs to.
    __device__ __forceinline__ bool find(const Params& params, int of_part) {
        const int lane = threadIdx.x % WARP;
#pragma unroll 1
        for (; entry < params.b; entry += WARP) {
            const bool known = entry + lane < params.b;
            const int64_t own = known ? int64_t(of_part) * DecodeWork::parts_of(params, entry + lane) : 0;
            int64_t end = before + own;     // of the items of this lane's entry and those before it
#pragma unroll
            for (int step = 1; step < WARP; step *= 2) {
                const int64_t other = __shfl_up_sync(ALL_LANES, end - before, step);
                if (lane >= step) end += other;
            }
            const int passed = __popc(__ballot_sync(ALL_LANES, end <= item));     // they are the first lanes
            before = __shfl_sync(ALL_LANES, passed == WARP ? end : end - own, least(passed, WARP - 1));
            if (passed < WARP) {
                entry += passed;
                return true;
            }
        }
        return false;
    }
};

// The parts in the workspace become the results of the tile's rows, each by one of the block's WARPS warps.
template <int WARPS, typename T, typename Stored>
__device__ __forceinline__ void merge_parts(const DecodeParams<T, Stored>& params, const DecodeWork& work) {
    using A = Acc<T>;
    for (int row = work.row0 + threadIdx.x / WARP; row < work.row1; row += WARPS) {
        const RowSum<A>* sums = params.part_sums + (work.first_row + row) * params.parts;
        const A* outs = params.part_outs + (work.first_row + row) * params.parts * params.dv;
        T* out = params.out == nullptr ? nullptr : params.out + work.row_of(params.out_strides, row);
        const RowSum<A> all = merge_row<A>(
            work.keys.count, out == nullptr ? 0 : params.dv,
            [&](int part) { return sums[part]; },
            [&](int part, int col) { return outs[int64_t(part) * params.dv + col]; },
            [&](int col, A number, const RowSum<A>& sum) {
                out[col * params.out_strides.col] = narrow<T>(sum.divide(number));
            }
        );
        if (params.lse != nullptr && threadIdx.x % WARP == 0)
            params.lse[work.row_of(params.lse_strides, row)] = all.lse();
    }
}

}  // namespace cf
