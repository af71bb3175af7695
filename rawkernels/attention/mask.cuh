// mask.cuh -- which keys a query sees, asked per tile (visit it? does it hide anything?) and per element. Every
// question about visibility is answered here, for whoever loads keys and whoever scores them alike.
#pragma once
#include "span.cuh"

namespace cf {

// A window around each query's position (causal is right = 0), the keys that are real, and an array of booleans.
struct Mask {
    int64_t q_offset, left, right;
    int kv_length;      // keys kv_first ... kv_length - 1 are looked at
    int kv_first;
    const bool* array;  // of this batch entry and head, or null
    int64_t row_stride, col_stride;

    template <typename T>
    static __device__ __forceinline__ Mask of(const Attention<T>& problem, const Span& span, int head) {
        const bool* array = problem.mask;
        if (array != nullptr) array += offset_of(problem.mask_strides, span.entry, head);
        return {span.q_offset, problem.left, problem.right, span.kv_length, 0,
                array, problem.mask_strides.row, problem.mask_strides.col};
    }
    // The same for one part of the keys that the queries from q0 on see: these are cut every `part_keys`, whole tiles.
    template <int KV_TILE> __device__ __forceinline__ Mask part(int index, int part_keys, int q0) const {
        Mask mask = *this;
        const int64_t begin = first(q0) / KV_TILE * KV_TILE + int64_t(index) * part_keys;
        mask.kv_first = int(least<int64_t>(begin, kv_length));
        mask.kv_length = int(least<int64_t>(begin + part_keys, kv_length));
        return mask;
    }

    // Query `row` sees keys first(row) <= key < end(row), as far as the array agrees.
    __device__ __forceinline__ int first(int row) const { return largest(kv_first, within(row + q_offset - left)); }
    __device__ __forceinline__ int end(int row) const { return within(row + q_offset + right + 1); }

    // The first tile of keys at or after `tile` in which one of the queries q0 ... q1 - 1 may see a key; the walk over
    // them ends with NO_TILE. Tile t holds keys t * KV_TILE ...
    static constexpr int NO_TILE = 0x7fffffff;
    template <int KV_TILE> __device__ __forceinline__ int next_tile(int tile, int q0, int q1) const {
        tile = largest(tile, first(q0) / KV_TILE);
        return q0 < q1 && int64_t(tile) * KV_TILE < end(q1 - 1) ? tile : NO_TILE;
    }
    // The same for the queries that may see one of the keys kv0 ... kv1 - 1.
    template <int Q_TILE> __device__ __forceinline__ int next_query_tile(int tile, int kv0, int kv1, int lq) const {
        const int64_t low = kv0 - right - q_offset, high = least<int64_t>(kv1, kv_length) - 1 + left - q_offset;
        tile = largest(tile, int(largest<int64_t>(0, least<int64_t>(low, lq))) / Q_TILE);
        const int64_t row = int64_t(tile) * Q_TILE;
        return kv0 < kv_length && row < lq && row <= high ? tile : NO_TILE;
    }

    // Whether the window hides anything of the tile of queries q0 ... q1 - 1 and keys kv0 ... kv1 - 1.
    __device__ __forceinline__ bool cuts(int q0, int q1, int kv0, int kv1) const {
        return kv0 < first(q1 - 1) || kv1 > end(q0);
    }
    // Whether the array shows an element that the window shows.
    __device__ __forceinline__ bool shows(int row, int key) const {
        return array == nullptr || in_global(array)[row * row_stride + key * col_stride];
    }

  private:
    __device__ __forceinline__ int within(int64_t key) const {
        return int(largest<int64_t>(0, least<int64_t>(key, kv_length)));
    }
};

}  // namespace cf
