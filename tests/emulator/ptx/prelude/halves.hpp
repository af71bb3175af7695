// f16 and bf16 arithmetic on their bits: computed in f64, where products are exact and sums rounded to odd, then
// rounded once. NaN results are canonical (0x7fff), subnormals are kept.
#pragma once
#include "floats.hpp"

static inline f64 half_value(u16 bits, bool bfloat) {
    return bfloat ? (f64)f32_of((u32)bits << 16) : (f64)machine::f32_from_f16(bits);
}
static inline u16 half_bits(f64 value, bool bfloat) { return (u16)encode(value, bfloat ? BF16 : F16, Mode::rn); }

// The sum with what does not fit made odd, so that rounding it to fewer bits rounds the exact sum (Boldo, Melquiond).
static inline f64 odd_sum(f64 a, f64 b) {
    f64 sum = a + b, shadow = sum - a, error = (a - (sum - shadow)) + (b - shadow);
    if (!(__builtin_fabs(sum) < __builtin_inf()) || error == 0 || (bits_of(sum) & 1)) return sum;
    bool away = (error > 0) == (sum > 0);
    return f64_of(bits_of(sum) + (away ? 1 : -1));
}

enum class Half { add, sub, mul, fma, min, max, min_nan, max_nan };
static inline f64 half_result(Half op, f64 a, f64 b, f64 c) {
    switch (op) {
        case Half::add: return odd_sum(a, b);
        case Half::sub: return odd_sum(a, -b);
        case Half::mul: return a * b;
        case Half::fma: return odd_sum(a * b, c);
        case Half::min: return float_min(a, b, false);
        case Half::max: return float_max(a, b, false);
        case Half::min_nan: return float_min(a, b, true);
        default: return float_max(a, b, true);
    }
}
struct HalfRules {  // .ftz, .sat, .relu, .xorsign.abs
    bool bfloat, ftz = false, sat = false, relu = false, xorsign = false;
};
static inline f64 half_flushed(f64 value, const HalfRules& rules) {
    return rules.ftz && __builtin_fabs(value) < (rules.bfloat ? 0x1p-126 : 0x1p-14) ? __builtin_copysign(0.0, value)
                                                                                      : value;
}
static inline u16 half_op(Half op, HalfRules rules, u16 a, u16 b, u16 c) {
    u16 sign = (a ^ b) & 0x8000;
    if (rules.xorsign) a &= 0x7fff, b &= 0x7fff;
    f64 x = half_flushed(half_value(a, rules.bfloat), rules), y = half_flushed(half_value(b, rules.bfloat), rules);
    f64 z = half_flushed(half_value(c, rules.bfloat), rules), result = half_result(op, x, y, z);
    if (rules.sat) result = sat(result);
    u16 bits = half_bits(result, rules.bfloat);
    if (rules.relu && (bits & 0x8000) && (bits & 0x7fff) <= (rules.bfloat ? 0x7f80 : 0x7c00)) bits = 0;
    bits = half_bits(half_flushed(half_value(bits, rules.bfloat), rules), rules.bfloat);
    return rules.xorsign ? (bits & 0x7fff) | sign : bits;
}
static inline u32 half2_op(Half op, HalfRules rules, u32 a, u32 b, u32 c) {
    return half_op(op, rules, (u16)a, (u16)b, (u16)c) |
           (u32)half_op(op, rules, (u16)(a >> 16), (u16)(b >> 16), (u16)(c >> 16)) << 16;
}
static inline u32 add_f16x2(u32 a, u32 b) { return half2_op(Half::add, HalfRules{false}, a, b, 0); }
static inline u32 add_bf16x2(u32 a, u32 b) { return half2_op(Half::add, HalfRules{true}, a, b, 0); }

enum class Approximation { tanh, ex2 };
static inline u16 half_approx(u16 bits, Approximation function, bool bfloat, bool ftz) {
    HalfRules rules = {bfloat, ftz};
    f64 value = half_flushed(half_value(bits, bfloat), rules);
    u16 result = half_bits(function == Approximation::tanh ? __builtin_tanh(value) : __builtin_exp2(value), bfloat);
    return half_bits(half_flushed(half_value(result, bfloat), rules), bfloat);
}
