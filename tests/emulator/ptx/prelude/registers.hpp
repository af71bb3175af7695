// Registers of translated kernels: unions of one width, read through the member of the instruction's type.
#pragma once
#include <cstdint>

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using u128 = unsigned __int128;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using s128 = __int128;
using f32 = float;
using f64 = double;
using pred = unsigned char;

union R8 {
    uint8_t u8;
    int8_t s8;
};
union R16 {
    uint16_t u16;
    int16_t s16;
};
union R32 {
    uint32_t u32;
    int32_t s32;
    float f32;
};
union R64 {
    uint64_t u64;
    int64_t s64;
    double f64;
};
union R128 {
    unsigned __int128 u128;
    __int128 s128;
};

// What a register holds before it is written: a NaN in every floating format, and a predicate that is neither 0 nor 1.
constexpr u8 POISON8 = 0xff;
constexpr u16 POISON16 = 0xffff;
constexpr u32 POISON32 = 0xffffffffu;
constexpr u64 POISON64 = ~0ull;
constexpr u128 POISON128 = ~(u128)0;
constexpr pred POISON_PRED = 0xff;

static inline f32 f32_of(u32 bits) { return R32{bits}.f32; }
static inline f64 f64_of(u64 bits) { return R64{bits}.f64; }
static inline u32 bits_of(f32 value) {
    R32 both;
    both.f32 = value;
    return both.u32;
}
static inline u64 bits_of(f64 value) {
    R64 both;
    both.f64 = value;
    return both.u64;
}
