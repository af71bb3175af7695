// cached.cuh -- where the tokens of a sequence lie in a cache, in its row or in pages, and how a tile of them comes
// into shared memory. Whoever works with keys and values sees positions in the sequence only.
#pragma once
#include "../core/simt_tile.cuh"
#include "cache_params.cuh"

namespace cf {

constexpr int64_t ABSENT = INT64_LEAST; // a row that is not there: it reads as zeros

// A token's place in the arrays of a cache.
struct Place {
    int row, token;
    bool exists;

    __device__ __forceinline__ int64_t offset(const TokenStrides& strides, int head) const {
        return uint32_t(row) * strides.row + uint32_t(token) * strides.token + head * strides.head;
    }
};

// Tokens that a sequence can have at all.
template <typename Stored> __device__ __forceinline__ int64_t room_of(const Cache<Stored>& cache) {
    return int64_t(cache.tokens) * cache.entries;
}

// The place of the token at `position`, 0 <= position < room_of(cache). None if its page is none of the cache's.
template <typename Stored>
__device__ __forceinline__ Place place_of(const Cache<Stored>& cache, int sequence, int position) {
    if (cache.page_table == nullptr) return {sequence, position, true};
    const int page = cache.page_table[sequence * cache.table_stride + position / cache.tokens];
    return {page, position % cache.tokens, page >= 0 && page < cache.rows};
}

// Of each token of a tile: where its key and its value start, in elements, and the scales of codes.
template <typename Stored, int TOKENS> struct TokenTile {
    static constexpr bool CODES = false;
    int64_t k_at[TOKENS], v_at[TOKENS];

    __device__ __forceinline__ void find_scales(const Cache<Stored>&, int, const Place&, int) {}
};
template <int TOKENS> struct CodeScales {
    static constexpr bool CODES = true;
    int64_t k_at[TOKENS], v_at[TOKENS];
    float k_scale[TOKENS], v_scale[TOKENS];

    template <typename Stored>
    __device__ __forceinline__ void find_scales(const Cache<Stored>& cache, int i, const Place& place, int head) {
        k_scale[i] = place.exists ? cache.k_scale[place.offset(cache.k_scale_strides, head)] : 0.0f;
        v_scale[i] = place.exists ? cache.v_scale[place.offset(cache.v_scale_strides, head)] : 0.0f;
    }
};
template <int TOKENS> struct TokenTile<int8_code, TOKENS> : CodeScales<TOKENS> {};
template <int TOKENS> struct TokenTile<float8_e4m3fn, TOKENS> : CodeScales<TOKENS> {};

// Fills a tile with the places of the tokens begin ... end - 1 of a sequence; what is left of the tile is ABSENT.
template <typename Stored, int TOKENS>
__device__ __forceinline__ void find_tokens(
    TokenTile<Stored, TOKENS>& tile, const Cache<Stored>& cache, int sequence, int head, int begin, int end
) {
    const int i = threadIdx.x;
    if (i >= TOKENS) return;
    Place place{0, 0, false};
    if (begin + i < end) place = place_of(cache, sequence, begin + i);
    tile.k_at[i] = place.exists ? place.offset(cache.k_strides, head) : ABSENT;
    tile.v_at[i] = place.exists ? place.offset(cache.v_strides, head) : ABSENT;
    tile.find_scales(cache, i, place, head);
}

// tile = rows of `src`, widened: row r starts at element at[r]. Zeros where that is ABSENT, and beyond `cols`.
template <typename A, typename T, int ROWS, int COLS, int PAD>
__device__ __forceinline__ void load_rows(
    SimtTile<A, ROWS, COLS, PAD>& tile, const T* src, const int64_t (&at)[ROWS], int64_t col_stride, int cols
) {
    constexpr int STEP = Simt<A>::THREADS / COLS;   // rows that all threads load at once
    static_assert(Simt<A>::THREADS % COLS == 0 && ROWS % STEP == 0, "every thread loads the same number of rows");
    const int col = threadIdx.x % COLS, row0 = threadIdx.x / COLS;
    const T* from = src + col * col_stride;
#pragma unroll 8
    for (int i = 0; i < ROWS / STEP; ++i) {
        const int row = row0 + i * STEP;
        tile.at(row, col) = at[row] != ABSENT && col < cols ? widen(from[at[row]]) : A(0);
    }
}

}  // namespace cf
