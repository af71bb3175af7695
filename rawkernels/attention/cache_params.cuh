// cache_params.cuh -- what the kernels around caches and the transforms are told, as params.cuh does for attention: one
// struct for each, every pointer with its shape. Batch entries of arrays [b, ...] count along Strides::batch[ENTRIES].
#pragma once
#include "../core/codes.cuh"
#include "params.cuh"
#include "row_sum.cuh"

namespace cf {

constexpr int ENTRIES = BATCH_AXES - 1;
constexpr int PLACES = 128;         // integers that one scatter writes
constexpr int MERGE_ARRAYS = 16;    // arrays that one merge takes where its parts do not lie in one

// Elements between the rows, tokens, heads and features of an array of a cache.
struct TokenStrides { int64_t row, token, head, col; };

// A row is a sequence, or a page where there is a page table. `Stored` is the dtype of the queries, or a code.
template <typename Stored> struct Cache {
    Stored* k;          // [rows, tokens, hk, d]
    Stored* v;          // [rows, tokens, hk, dv]
    float* k_scale;     // [rows, tokens, hk] of codes, else null
    float* v_scale;
    TokenStrides k_strides, v_strides, k_scale_strides, v_scale_strides;
    const int32_t* page_table;  // [sequences, entries], or null: token i of a sequence is in the page of entry
    int64_t table_stride;       // i / tokens, at i % tokens; -1 is no page. Elements between sequences
    int32_t rows, tokens, entries;  // without a page table, entries is 1
};

template <typename T, typename Stored> struct DecodeParams {
    const T* q;         // [b, hq, lq, d]
    Strides q_strides;
    Cache<Stored> cache;
    const int32_t* seqs;        // [b]: the sequence of each entry; null: 0, 1, ...
    const int32_t* lengths;     // [sequences]; null: `limit` for all
    int64_t q_offset;           // position of query 0; UNSET: the last query is at that of the last key
    Reals bias;         // [b, hq, lq, keys by their position in the sequence]
    Reals slopes;       // [hq]
    Reals sinks;        // [hq]
    int64_t left, right;        // as in Attention
    double scale, softcap;
    T* out;             // [b, hq, lq, dv]; null: not wanted
    Strides out_strides;
    Acc<T>* lse;        // [b, hq, lq]; null: not wanted
    Strides lse_strides;
    Acc<T>* part_outs;  // [b, hq * lq, parts, dv], workspace; not divided yet by
    RowSum<Acc<T>>* part_sums;  // [b, hq * lq, parts]
    uint32_t* tickets;  // [b * hk * tiles of queries], zeros; null: several parts are left to merge.cu
    int32_t b, hq, hk, lq, d, dv;
    int32_t part_keys;  // keys of a part
    int32_t splits;     // or, if not 0, how many parts the keys that a tile of queries sees are cut into
    int32_t parts;      // blocks of a tile of queries: as many as any sequence can need
    int32_t listed;     // blocks go on to other parts when they have done one
    int32_t limit;      // no key at this position or beyond is looked at, whatever the lengths say
};

template <typename T, typename Stored> struct AppendParams {
    const T* k;         // [b, hk, l, d]
    const T* v;         // [b, hk, l, dv]
    Strides k_strides, v_strides;
    Cache<Stored> cache;
    const int32_t* seqs;        // [b]: the sequence of each entry, each once; null: 0, 1, ...
    Integers counts;    // [b]: how many of the l tokens are real
    int32_t* lengths;   // [sequences]: the position of the first new token; raised in the end
    const int32_t* shared;      // [sequences]: tokens in pages of other sequences too: none goes below; null: 0
    const int32_t* reserved;    // [sequences]: tokens that a sequence has room for; null: all that a row holds
    int32_t* dropped;   // [sequences]: raised by the number of tokens that found no room
    uint32_t* tickets;  // [b], zeros
    int32_t b, hk, l, d, dv;
    int32_t blocks;     // of an entry
};

struct CopyPagesParams {
    uint8_t* arrays[4];         // k, v and their scales, [pages, ...] in C order; null: there is none
    int64_t bytes[4];           // of a page
    const int32_t* sources;     // [count]
    const int32_t* targets;     // [count]: no page is both
    int32_t count;
    int32_t chunks;             // blocks of a page of an array
};

struct ScatterParams {
    int32_t* at[PLACES];
    int32_t values[PLACES];
    int32_t count;
};

template <typename T> struct MergePart {
    const T* out;       // [batch..., heads, rows, dv]
    const Acc<T>* lse;  // [batch..., heads, rows]
    Strides out_strides, lse_strides;
};

template <typename T, typename Part> struct MergeParams {
    MergePart<Part> given[MERGE_ARRAYS];   // part p is in given[p % arrays], p / arrays steps (of elements) further on
    int64_t out_step, lse_step;
    T* out;             // as each part
    Acc<T>* lse;        // null: not wanted
    Strides out_strides, lse_strides;
    int64_t entries;    // of the batch: the product of its sizes
    int32_t batch[BATCH_AXES];
    int32_t heads, rows, dv;
    int32_t parts, arrays;
    int32_t sums;       // in place of each lse there is a RowSum, by which the output is not divided yet
};

// Numbers of a kind that is known at run time.
enum class NumberKind : int32_t { int32, int64, float32, float64 };
struct Numbers {
    const void* data;
    Strides strides;
    NumberKind kind;
};

template <typename T> struct RotaryParams {
    const T* x;         // [batch..., heads, rows, d]
    T* out;             // as x, elsewhere
    Strides x_strides, out_strides;
    Numbers positions;  // [batch..., rows]
    Numbers freqs;      // [dim / 2], radians per position
    int64_t entries;    // of the batch
    int32_t batch[BATCH_AXES];
    int32_t heads, rows, d;
    int32_t dim;        // features that are turned, from the first; even
    int32_t interleaved;        // pairs are (2 i, 2 i + 1), else (i, i + dim / 2)
};

}  // namespace cf
