// f32 and f64 instructions. A NaN result of an f32 instruction is the canonical NaN; .ftz makes subnormal inputs and
// results zeros of their sign; .sat clamps to [0, 1] and makes a NaN +0.
#pragma once
#include "formats.hpp"

constexpr u32 NAN32 = 0x7fffffffu;

static inline f32 canonical(f32 value) { return value == value ? value : f32_of(NAN32); }
static inline f32 ftz(f32 value) { return __builtin_fabsf(value) < 0x1p-126f ? __builtin_copysignf(0, value) : value; }
static inline f32 sat(f32 value) { return value > 1 ? 1.0f : value > 0 ? value : 0.0f; }
static inline f64 sat(f64 value) { return value > 1 ? 1.0 : value > 0 ? value : 0.0; }

// Arithmetic in a rounding mode. The volatile operands keep the operation between the two changes of the mode.
#define ROUNDED_BINARY(NAME, TYPE, OPERATOR)                          \
    static inline TYPE NAME(TYPE a, TYPE b, Mode mode) {              \
        Rounding rounding(mode);                                      \
        volatile TYPE x = a, y = b, result;                           \
        result = x OPERATOR y;                                        \
        return result;                                                \
    }
ROUNDED_BINARY(add_rounded, f32, +)
ROUNDED_BINARY(add_rounded, f64, +)
ROUNDED_BINARY(sub_rounded, f32, -)
ROUNDED_BINARY(sub_rounded, f64, -)
ROUNDED_BINARY(mul_rounded, f32, *)
ROUNDED_BINARY(mul_rounded, f64, *)
ROUNDED_BINARY(div_rounded, f32, /)
ROUNDED_BINARY(div_rounded, f64, /)
#undef ROUNDED_BINARY
static inline f32 fma_rounded(f32 a, f32 b, f32 c, Mode mode) {
    Rounding rounding(mode);
    volatile f32 x = a, y = b, z = c, result;
    result = __builtin_fmaf(x, y, z);
    return result;
}
static inline f64 fma_rounded(f64 a, f64 b, f64 c, Mode mode) {
    Rounding rounding(mode);
    volatile f64 x = a, y = b, z = c, result;
    result = __builtin_fma(x, y, z);
    return result;
}
static inline f32 sqrt_rounded(f32 a, Mode mode) {
    Rounding rounding(mode);
    volatile f32 x = a, result;
    result = __builtin_sqrtf(x);
    return result;
}
static inline f64 sqrt_rounded(f64 a, Mode mode) {
    Rounding rounding(mode);
    volatile f64 x = a, result;
    result = __builtin_sqrt(x);
    return result;
}
static inline f32 f32_rounded(f64 a, Mode mode) {
    Rounding rounding(mode);
    volatile f64 x = a;
    volatile f32 result;
    result = (f32)x;
    return result;
}
#define FROM_INTEGER(NAME, TYPE, INTEGER)                             \
    static inline TYPE NAME(INTEGER a, Mode mode) {                   \
        Rounding rounding(mode);                                      \
        volatile INTEGER x = a;                                       \
        volatile TYPE result;                                         \
        result = (TYPE)x;                                             \
        return result;                                                \
    }
FROM_INTEGER(f32_from_signed, f32, s64)
FROM_INTEGER(f32_from_unsigned, f32, u64)
FROM_INTEGER(f64_from_signed, f64, s64)
FROM_INTEGER(f64_from_unsigned, f64, u64)
#undef FROM_INTEGER

// min and max: -0 lies below +0; one NaN loses, two give the canonical NaN; with `nan` any NaN wins.
#define MIN_MAX(TYPE, CANONICAL)                                                                  \
    static inline TYPE float_min(TYPE a, TYPE b, bool nan) {                                      \
        if (a != a || b != b) return nan || (a != a && b != b) ? CANONICAL : a != a ? b : a;      \
        return a < b || (a == b && __builtin_signbit(a)) ? a : b;                                 \
    }                                                                                             \
    static inline TYPE float_max(TYPE a, TYPE b, bool nan) {                                      \
        if (a != a || b != b) return nan || (a != a && b != b) ? CANONICAL : a != a ? b : a;      \
        return a > b || (a == b && __builtin_signbit(b)) ? a : b;                                 \
    }
MIN_MAX(f32, f32_of(NAN32))
MIN_MAX(f64, f64_of(0x7fffffffffffffffull))
#undef MIN_MAX

// .xorsign.abs: the smaller or larger magnitude with the product's sign.
static inline f32 with_sign_product(f32 magnitude, f32 a, f32 b) {
    return f32_of((bits_of(magnitude) & 0x7fffffffu) | ((bits_of(a) ^ bits_of(b)) & 0x80000000u));
}

enum class Test { finite, infinite, number, notanumber, normal, subnormal };
static inline bool testp(Test test, f64 value, f64 least_normal) {  // zeros are normal
    f64 magnitude = __builtin_fabs(value);
    switch (test) {
        case Test::finite: return magnitude < __builtin_inf();
        case Test::infinite: return magnitude == __builtin_inf();
        case Test::number: return value == value;
        case Test::notanumber: return value != value;
        case Test::subnormal: return magnitude > 0 && magnitude < least_normal;
        default: return magnitude == 0 || (magnitude >= least_normal && magnitude < __builtin_inf());
    }
}

// Approximate instructions: the exact value rounded once, which lies within every documented bound.
static inline f32 ex2_approx(f32 a) { return canonical((f32)__builtin_exp2((f64)a)); }
static inline f32 lg2_approx(f32 a) { return canonical((f32)__builtin_log2((f64)a)); }
static inline f32 rcp_approx(f32 a) { return canonical((f32)(1.0 / (f64)a)); }
static inline f32 sqrt_approx(f32 a) { return canonical(__builtin_sqrtf(a)); }
static inline f32 rsqrt_approx(f32 a) { return canonical((f32)(1.0 / __builtin_sqrt((f64)a))); }
static inline f32 sin_approx(f32 a) { return canonical((f32)__builtin_sin((f64)a)); }
static inline f32 cos_approx(f32 a) { return canonical((f32)__builtin_cos((f64)a)); }
static inline f32 tanh_approx(f32 a) { return canonical((f32)__builtin_tanh((f64)a)); }
// Beyond 2^126 the divisor's reciprocal is lost: the quotient is a zero, of an infinity a NaN.
static inline f32 div_approx(f32 a, f32 b) {
    if (__builtin_fabsf(b) > 0x1p126f && __builtin_fabsf(b) < __builtin_inff() && a == a)
        return __builtin_isinf(a) ? f32_of(NAN32) : __builtin_copysignf(0, f32_of(bits_of(a) ^ bits_of(b)));
    return canonical(a / b);
}
// rcp.approx.ftz.f64 and rsqrt.approx.ftz.f64 see and make the upper 32 bits only; subnormals are zeros of their sign.
static inline f64 upper_word(f64 value) {
    f64 upper = f64_of(bits_of(value) & ~0xffffffffull);
    return __builtin_fabs(upper) < 0x1p-1022 ? __builtin_copysign(0.0, upper) : upper;
}
static inline f64 rcp_approx_upper(f64 a) { return upper_word(1.0 / upper_word(a)); }
static inline f64 rsqrt_approx_upper(f64 a) { return upper_word(1.0 / __builtin_sqrt(upper_word(a))); }
static inline f64 rsqrt_approx(f64 a) { return 1.0 / __builtin_sqrt(a); }

// Two f32 in 64 bits.
using Binary32 = f32 (*)(f32, f32);
static inline u64 pair_of(f32 low, f32 high) { return (u64)bits_of(high) << 32 | bits_of(low); }
static inline f32 low_of(u64 pair) { return f32_of((u32)pair); }
static inline f32 high_of(u64 pair) { return f32_of((u32)(pair >> 32)); }
