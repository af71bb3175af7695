// Rounding to any floating format in any mode, by integers: one statement of IEEE 754 for f16, bf16, tf32 and the 8-bit
// formats. The common cases, to nearest even, go through the machine's own functions.
#pragma once
#include <cfenv>

#include "integers.hpp"

enum class Mode { rn, rz, rm, rp, rna };  // nearest even, toward zero, -inf, +inf, nearest with ties away from zero

struct Format {
    int mantissa_bits, least_exponent;  // of normal numbers, unbiased
    u32 infinity, largest, canonical_nan, sign;  // bits; a format without infinity has its NaN there
    int spare_bits;  // low zero bits below the mantissa in the register
};
constexpr Format F16 = {10, -14, 0x7c00, 0x7bff, 0x7fff, 0x8000, 0};
constexpr Format BF16 = {7, -126, 0x7f80, 0x7f7f, 0x7fff, 0x8000, 0};
constexpr Format TF32 = {10, -126, 0x7f800000, 0x7f7fe000, 0x7fffffff, 0x80000000, 13};
constexpr Format E4M3 = {3, -6, 0x7f, 0x7e, 0x7f, 0x80, 0};
constexpr Format E5M2 = {2, -14, 0x7c, 0x7b, 0x7f, 0x80, 0};

static inline bool rounds_up(Mode mode, bool negative, f64 rest, bool odd) {  // rest: in units of the last place
    switch (mode) {
        case Mode::rn: return rest > 0.5 || (rest == 0.5 && odd);
        case Mode::rna: return rest >= 0.5;
        case Mode::rm: return negative && rest > 0;
        case Mode::rp: return !negative && rest > 0;
        default: return false;
    }
}

// The bits of `value` in a format. Overflow gives infinity or, where the mode or `finite` says so, the largest number.
static inline u32 encode(f64 value, const Format& format, Mode mode, bool finite = false) {
    if (value != value) return format.canonical_nan;
    bool negative = __builtin_signbit(value);
    u32 sign = negative ? format.sign : 0;
    f64 magnitude = __builtin_fabs(value);
    if (magnitude == 0) return sign;
    bool nearest = mode == Mode::rn || mode == Mode::rna;
    bool away = nearest || (mode == Mode::rm && negative) || (mode == Mode::rp && !negative);
    u32 beyond = finite || !(away || magnitude == __builtin_inf()) ? format.largest : format.infinity;
    if (magnitude == __builtin_inf()) return sign | beyond;
    int exponent = __builtin_ilogb(magnitude);
    if (exponent < format.least_exponent) exponent = format.least_exponent;
    if (exponent > 128) return sign | beyond;
    f64 scaled = __builtin_ldexp(magnitude, format.mantissa_bits - exponent);  // exact; in units of the last place
    u64 units = (u64)scaled;
    if (rounds_up(mode, negative, scaled - (f64)units, units & 1)) units++;
    u64 bits = ((u64)(exponent - format.least_exponent) << format.mantissa_bits) + units;
    u64 shifted = bits << format.spare_bits;
    return sign | (shifted > format.largest ? beyond : (u32)shifted);
}

static inline u32 relu(u32 bits, const Format& format) { return bits & format.sign ? 0 : bits; }

static inline f64 decode(u32 bits, const Format& format) {
    f64 sign = bits & format.sign ? -1.0 : 1.0;
    u32 magnitude = bits & ~format.sign;
    if (magnitude > format.infinity || (magnitude == format.infinity && format.infinity == format.canonical_nan))
        return f64_of(0x7ff8000000000000ull);
    if (magnitude == format.infinity) return sign * __builtin_inf();
    magnitude >>= format.spare_bits;
    u32 exponent = magnitude >> format.mantissa_bits;
    u32 fraction = magnitude & (u32)low_bits(format.mantissa_bits);
    if (exponent) fraction += 1u << format.mantissa_bits;
    else exponent = 1;
    return sign * __builtin_ldexp((f64)fraction, (int)exponent - 1 + format.least_exponent - format.mantissa_bits);
}

// An integer as a double from which any format of at most 51 bits rounds as it would from the integer: what does not
// fit makes the last bit odd.
static inline f64 odd_of(u64 magnitude, bool negative) {
    int extra = magnitude ? 11 - __builtin_clzll(magnitude) : 0;
    if (extra > 0) {
        u64 kept = magnitude >> extra << extra;
        magnitude = kept == magnitude ? kept : kept | 1ull << extra;
    }
    return negative ? -(f64)magnitude : (f64)magnitude;
}
static inline f64 odd_from_signed(s64 value) { return odd_of(value < 0 ? 0 - (u64)value : (u64)value, value < 0); }
static inline f64 odd_from_unsigned(u64 value) { return odd_of(value, false); }

// The floating-point unit in another rounding mode while this lives.
struct Rounding {
    int before;
    explicit Rounding(Mode mode) : before(std::fegetround()) {
        constexpr int MODES[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD, FE_TONEAREST};
        std::fesetround(MODES[(int)mode]);
    }
    ~Rounding() { std::fesetround(before); }
};

// cvt to integers: rounded by the mode, clamped to the type; `nan` is what a NaN becomes.
static inline f64 integral(f64 value, Mode mode) {
    switch (mode) {
        case Mode::rz: return __builtin_trunc(value);
        case Mode::rm: return __builtin_floor(value);
        case Mode::rp: return __builtin_ceil(value);
        default: return __builtin_rint(value);
    }
}
static inline s64 signed_from(f64 value, Mode mode, u32 bits, u64 nan) {
    if (value != value) return (s64)nan;
    f64 limit = __builtin_ldexp(1.0, (int)bits - 1), rounded = integral(value, mode);
    if (rounded >= limit) return (s64)low_bits(bits - 1);
    return rounded < -limit ? -(s64)low_bits(bits - 1) - 1 : (s64)rounded;
}
static inline u64 unsigned_from(f64 value, Mode mode, u32 bits, u64 nan) {
    if (value != value) return nan;
    f64 rounded = integral(value, mode);
    if (rounded >= __builtin_ldexp(1.0, (int)bits)) return low_bits(bits);
    return rounded <= 0 ? 0 : (u64)rounded;
}
