// decode_work.cuh -- what a block of a decoding kernel owns: some of the queries that share a key/value head, and a part
// of the keys that they see. And how the results of the parts become those of the queries.
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

    // Blocks count tiles of queries first, which share their keys; then parts, heads, and entries.
    template <int Q_TILE, typename Params>
    static __device__ __forceinline__ DecodeWork of(const Params& params, int64_t block) {
        DecodeWork work;
        work.group = params.hq / params.hk;
        const int rows = work.group * params.lq, tiles = ceil_div(rows, Q_TILE);
        const int tile = int(block % tiles);
        block /= tiles;
        work.part = int(block % params.parts);
        block /= params.parts;
        work.tile = block * tiles + tile;
        work.first_row = block * rows;
        work.kv_head = int(block % params.hk);
        work.entry = int(block / params.hk);
        work.row0 = tile * Q_TILE;
        work.row1 = least(work.row0 + Q_TILE, rows);
        work.sequence = params.seqs == nullptr ? work.entry : params.seqs[work.entry];

        const bool cached = params.lengths != nullptr;
        const int length = cached ? largest(0, least(params.lengths[work.sequence], params.limit)) : params.limit;
        const int64_t q_offset = params.q_offset == UNSET ? int64_t(length) - params.lq : params.q_offset;
        work.first_query = cached ? int(largest<int64_t>(0, -q_offset)) : 0;
        work.span = {{{0, 0, 0, work.entry}}, 0, 0, params.lq, length, length, q_offset};
        work.mask = {q_offset, params.left, params.right, length, 0, nullptr, 0, 0};
        const int first = work.mask.first(work.query(work.row0)), end = work.mask.end(work.query(work.row1 - 1));
        work.keys = KeyPart::of(work.part, first, end, params.part_keys, params.splits);
        const bool apart = params.tickets == nullptr && params.parts > 1;   // then each part has results, if empty ones
        work.whole = work.keys.count == 1 && !apart;
        work.keys.exists |= apart;
        return work;
    }

    __device__ __forceinline__ int query(int row) const { return row / group; }
    __device__ __forceinline__ int head(int row) const { return kv_head * group + row % group; }

    // A query of the tile sees the keys first_key ... end_key - 1 of the part; one at a negative position of a cache, and
    // a row beyond the last, none.
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

// The parts in the workspace become the results of the tile's rows, each by one of the block's WARPS warps.
template <int WARPS, typename T, typename Stored>
__device__ __forceinline__ void merge_parts(const DecodeParams<T, Stored>& params, const DecodeWork& work) {
    using A = Acc<T>;
    for (int row = work.row0 + threadIdx.x / WARP; row < work.row1; row += WARPS) {
        const A* lses = params.part_lses + (work.first_row + row) * params.parts;
        const A* outs = params.part_outs + (work.first_row + row) * params.parts * params.dv;
        T* out = params.out == nullptr ? nullptr : params.out + work.row_of(params.out_strides, row);
        const A lse = merge_row<A>(
            work.keys.count, out == nullptr ? 0 : params.dv,
            [&](int part) { return lses[part]; },
            [&](int part, int col) { return outs[int64_t(part) * params.dv + col]; },
            [&](int col, A number) { out[col * params.out_strides.col] = narrow<T>(number); }
        );
        if (params.lse != nullptr && threadIdx.x % WARP == 0) params.lse[work.row_of(params.lse_strides, row)] = lse;
    }
}

}  // namespace cf
