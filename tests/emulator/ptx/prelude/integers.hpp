// Integer instructions that are more than one C++ expression. Widths are passed in bits: one function serves 32 and 64.
#pragma once
#include "machine/machine.hpp"
#include "registers.hpp"

static inline s64 clamp(s64 value, s64 least, s64 most) { return value < least ? least : value > most ? most : value; }
static inline s128 clamp_wide(s128 value, s64 least, u64 most) {
    return value < least ? least : value > (s128)most ? (s128)most : value;
}
static inline u64 low_bits(u32 count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }

// PTX leaves division by zero unspecified: no kernel may depend on it.
static inline s64 div_signed(s64 a, s64 b, machine::Site site) {
    if (b == 0) machine::fault("integer division by zero", site);
    return b == -1 ? (s64)(0 - (u64)a) : a / b;
}
static inline s64 rem_signed(s64 a, s64 b, machine::Site site) {
    if (b == 0) machine::fault("integer division by zero", site);
    return b == -1 ? 0 : a % b;
}
static inline u64 div_unsigned(u64 a, u64 b, machine::Site site) {
    if (b == 0) machine::fault("integer division by zero", site);
    return a / b;
}
static inline u64 rem_unsigned(u64 a, u64 b, machine::Site site) {
    if (b == 0) machine::fault("integer division by zero", site);
    return a % b;
}

// The product of the low 24 bits, 48 bits wide.
static inline s64 mul24_signed(u32 a, u32 b) { return (s64)((s32)(a << 8) >> 8) * ((s32)(b << 8) >> 8); }
static inline u64 mul24_unsigned(u32 a, u32 b) { return (u64)(a & 0xffffff) * (b & 0xffffff); }

static inline u64 bfe(u64 a, u32 b, u32 c, u32 width, bool is_signed) {
    u32 position = b & 255, length = c & 255;
    u32 available = position < width ? width - position : 0;
    u32 taken = length < available ? length : available;
    u64 field = taken ? (a >> position) & low_bits(taken) : 0;
    u32 sign_position = position + length - 1 < width - 1 ? position + length - 1 : width - 1;
    bool sign = is_signed && length && (a >> sign_position & 1);
    return sign ? field | ~low_bits(taken) : field;
}
static inline u64 bfi(u64 a, u64 b, u32 c, u32 d, u32 width) {
    u32 position = c & 255, length = d & 255;
    if (position >= width || length == 0) return b;
    u64 mask = low_bits(length) << position;
    return (b & ~mask) | (a << position & mask);
}
static inline u32 bfind(u64 a, u32 width, bool is_signed, bool shift_amount) {
    if (is_signed && (a >> (width - 1) & 1)) a = ~a & low_bits(width);
    if (a == 0) return 0xffffffffu;
    u32 position = 63 - __builtin_clzll(a);
    return shift_amount ? width - 1 - position : position;
}
static inline u64 brev(u64 a, u32 width) {
    u64 reversed = 0;
    for (u32 bit = 0; bit < width; bit++) reversed |= (a >> bit & 1) << (width - 1 - bit);
    return reversed;
}
static inline u32 fns(u32 mask, u32 base, s32 offset) {
    if (offset == 0) return base < 32 && (mask >> base & 1) ? base : 0xffffffffu;
    s32 count = (offset < 0 ? -offset : offset) - 1, step = offset < 0 ? -1 : 1;
    for (s64 position = base; position >= 0 && position < 32; position += step)
        if (mask >> position & 1 && count-- == 0) return (u32)position;
    return 0xffffffffu;
}
static inline u32 bmsk(u32 a, u32 b, bool clamps) {
    if (clamps && a >= 32) return 0;
    u32 start = a & 31, length = clamps && b >= 32 ? 32 : b & 31;
    return (u32)(low_bits(length) << start);
}
static inline u32 szext(u32 a, u32 b, bool clamps, bool is_signed) {
    if (clamps && b >= 32) return a;
    u32 count = b & 31;
    if (count == 0) return 0;
    u32 field = a & (u32)low_bits(count);
    return is_signed && (field >> (count - 1) & 1) ? field | ~(u32)low_bits(count) : field;
}

// prmt: four selectors of four bits; the modes are tables of selectors, indexed by the low two bits of c.
constexpr u32 PRMT_F4E[4] = {0x3210, 0x4321, 0x5432, 0x6543};
constexpr u32 PRMT_B4E[4] = {0x5670, 0x6701, 0x7012, 0x0123};
constexpr u32 PRMT_RC8[4] = {0x0000, 0x1111, 0x2222, 0x3333};
constexpr u32 PRMT_ECL[4] = {0x3210, 0x3211, 0x3222, 0x3333};
constexpr u32 PRMT_ECR[4] = {0x0000, 0x1110, 0x2210, 0x3210};
constexpr u32 PRMT_RC16[4] = {0x1010, 0x3232, 0x1010, 0x3232};
static inline u32 prmt(u32 a, u32 b, u32 selectors) {
    u64 bytes = (u64)b << 32 | a;
    u32 result = 0;
    for (u32 place = 0; place < 4; place++) {
        u32 selector = selectors >> 4 * place & 15;
        u32 byte = bytes >> 8 * (selector & 7) & 255;
        if (selector & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * place;
    }
    return result;
}

// The funnel shift of b:a.
static inline u32 shf_left(u32 a, u32 b, u32 shift) { return (u32)(((u64)b << 32 | a) << shift >> 32); }
static inline u32 shf_right(u32 a, u32 b, u32 shift) { return (u32)(((u64)b << 32 | a) >> shift); }

// Dot products of packed integers: `bits` wide in a, bytes in b from `first` on.
static inline u32 packed_element(u32 word, u32 index, u32 bits, bool is_signed) {
    u32 element = word >> bits * index & (u32)low_bits(bits);
    return is_signed ? (u32)((s32)(element << (32 - bits)) >> (32 - bits)) : element;
}
static inline u32 dot_packed(u32 a, u32 b, u32 c, u32 bits, u32 first, bool a_signed, bool b_signed) {
    for (u32 i = 0; i < 32 / bits; i++)
        c += packed_element(a, i, bits, a_signed) * packed_element(b, first + i, 8, b_signed);
    return c;
}

// Two 16-bit integers of a word at a time.
enum class Pair { add, min_signed, max_signed, min_unsigned, max_unsigned };
static inline u32 pairwise(Pair op, u32 a, u32 b, bool relu) {
    u32 result = 0;
    for (u32 i = 0; i < 2; i++) {
        bool is_signed = op == Pair::min_signed || op == Pair::max_signed;
        s32 x = (s32)packed_element(a, i, 16, is_signed), y = (s32)packed_element(b, i, 16, is_signed), value = x + y;
        if (op == Pair::min_signed || op == Pair::min_unsigned) value = x < y ? x : y;
        if (op == Pair::max_signed || op == Pair::max_unsigned) value = x > y ? x : y;
        if (relu && value < 0) value = 0;
        result |= (u32)(value & 0xffff) << 16 * i;
    }
    return result;
}

// Special registers.
static inline u32 warps_of_block() { return (machine::ntid.x * machine::ntid.y * machine::ntid.z + 31) / 32; }
static inline u64 clock_ticks() {
    static u64 ticks = 0;
    return ++ticks;
}
