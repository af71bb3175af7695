// params.cuh -- what kernels are told: one struct for each, every pointer with its shape. cuflash/_params.py has the
// same structs, and tests/test_params_layout.py compares each offset. Lengths and strides count elements. What a caller
// did not give is a null pointer, or one of the values named here.
#pragma once
#include "../core/convert.cuh"

namespace cf {

constexpr int BATCH_AXES = 4;           // a problem's batch axes, merged where memory allows; unused ones have size 1
constexpr int64_t UNSET = INT64_LEAST;  // of Integers: what the kernel knows better than the host
// The side of a window that is unlimited. Offsets are cut to half of it: sums of both fit, and an unlimited side
// reaches every key from any position.
constexpr int64_t FARTHEST = 1ll << 61;

struct Strides { int64_t batch[BATCH_AXES], head, row, col; };

// An integer for each batch entry: `data` where it is given (signed, of `bytes` bytes), else `value` for all.
struct Integers {
    const void* data;
    int64_t value;
    int64_t batch[BATCH_AXES];
    int32_t bytes;
};

// Numbers of a dtype that is known at run time.
struct Reals {
    const void* data;
    Strides strides;
    Dtype dtype;
};

// The operands and options of attention, for the forward pass and each pass of the gradient.
template <typename T> struct Attention {
    const T* q;     // [batch..., hq, lq, d], or [hq, total_q, d] where sequences are packed
    const T* k;     // [batch..., hk, lk, d], or [hk, total_k, d]
    const T* v;     // [batch..., hk, lk, dv], or [hk, total_k, dv]
    Strides q_strides, k_strides, v_strides;
    const bool* mask;   // [batch..., hq, lq, lk]: true takes part
    Strides mask_strides;
    Reals bias;         // [batch..., hq, lq, lk], added to the scores
    Reals slopes;       // [hq]: -slope * |distance| is added to the scores
    Reals sinks;        // [hq]
    Integers q_offset;      // position of query 0 among the keys; UNSET: lk - lq of the sequence
    Integers kv_lengths;    // keys that are real; UNSET: all
    const int64_t* q_starts;    // [members + 1] where sequences are packed, else null
    const int64_t* kv_starts;
    int64_t left, right;    // a query at position p sees keys p - left ... p + right; at most FARTHEST
    double scale, softcap;  // softcap 0: none
    int32_t batch[BATCH_AXES];
    int32_t hq, group;      // query heads, and how many of them share a key/value head
    int32_t lq, lk, d, dv;  // lengths of the longest sequence
    int32_t q_tiles;        // tiles of queries of a head, over all members where sequences are packed
};

template <typename T> struct FwdParams {
    Attention<T> problem;
    T* out;             // as q, with dv columns; null: not wanted
    Acc<T>* part_outs;  // instead of it where keys are cut: [parts, as out...], not divided by `sum` yet; else null
    Strides out_strides;        // of either
    Acc<T>* lse;        // [batch..., hq, lq], or [hq, total_q]; null: not wanted. [parts, ...] where keys are cut
    Strides lse_strides;
    Acc<T>* sum;        // as lse, which then gets the maximum of each row alone: sum of exp(score - maximum); else null
    int64_t out_step, lse_step; // elements from a part to the next
    int32_t parts;      // that the keys of a tile of queries are cut into at the most
    int32_t part_keys;  // keys of each: whole tiles, unless there is one part
};

// Where a gradient goes: in its operand's dtype, or in Acc<T> where sum_axes.cu has still to add something up.
struct Gradient {
    void* data;
    Strides strides;
    Dtype dtype;
};

// What the passes of the gradient read.
template <typename T> struct Backward {
    Attention<T> problem;
    const T* dout;          // [batch..., hq, lq, dv], or [hq, total_q, dv]
    Strides dout_strides;
    const Acc<T>* lse;      // [batch..., hq, lq], or [hq, total_q]
    Strides lse_strides;
    const Acc<T>* delta;    // as lse: sum of dout * out over dv, minus dlse
    Strides delta_strides;
};

// Packed arrays are one batch entry of total_q rows here: rows have nothing to do with each other.
template <typename T> struct BwdPrepareParams {
    const T* dout;          // [batch..., heads, rows, dv]
    Strides dout_strides;
    const T* out;           // likewise
    Strides out_strides;
    const Acc<T>* dlse;     // [batch..., heads, rows]; null: zero
    Strides dlse_strides;
    Acc<T>* delta;          // likewise; written
    Strides delta_strides;
    int32_t batch[BATCH_AXES];
    int32_t heads, rows, dv;
};

template <typename T> struct BwdQParams {
    Backward<T> given;
    Gradient dq;            // as q, for all batch entries
};

template <typename T> struct BwdKvParams {
    Backward<T> given;
    Gradient dk, dv;        // as k and v, for all batch entries
    int32_t hk;             // key/value heads
    int32_t kv_tiles;       // tiles of keys of a head, over all members where sequences are packed
    int32_t k_slices, v_slices;     // of the columns of dk and of dv: each a block's
};

// Sizes of axes are those of the bias itself: 1 where it was broadcast.
template <typename T> struct BwdBiasParams {
    Backward<T> given;
    Gradient dbias;         // [batch..., heads, rows, cols]
    int64_t part_stride;    // elements from one part of the sum to the next
    int32_t batch[BATCH_AXES];
    int32_t heads, rows, cols;
    int32_t parts;          // that the batch entries and heads sharing an element are divided into
};

// As BwdPrepareParams in what a row is.
template <typename T> struct BwdSinksParams {
    const Acc<T>* lse;      // [batch..., heads, rows]
    Strides lse_strides;
    const Acc<T>* delta;    // likewise
    Strides delta_strides;
    Reals sinks;            // [heads]
    Gradient dsinks;        // [heads]
    int32_t batch[BATCH_AXES];
    int32_t heads, rows;
};

template <typename T> struct WeightsParams {
    Attention<T> problem;
    const Acc<T>* max;      // [batch..., hq, lq]: of the scores of each row
    const Acc<T>* sum;      // likewise, of exp(score - max)
    Strides row_strides;    // of both
    T* weights;             // [batch..., hq, lq, lk]
    Strides weights_strides;
    int32_t kv_tiles;       // tiles of keys of a head
};

constexpr int KEPT_AXES = BATCH_AXES + 3, SUMMED_AXES = BATCH_AXES + 1;

// Unused axes have size 1.
template <typename A> struct SumAxesParams {
    const A* in;
    void* out;
    int64_t elements;       // of out
    int64_t sizes[KEPT_AXES], in_strides[KEPT_AXES], out_strides[KEPT_AXES];
    int64_t summed_sizes[SUMMED_AXES], summed_strides[SUMMED_AXES];     // strides of in
    Dtype dtype;            // of out
};

}  // namespace cf
