// Conversions between number formats, by integers and exact scaling so that they do not depend on the host's units.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "machine.hpp"

namespace machine {

namespace {

// A small format: sign, exponent bits, then fraction bits, with subnormals.
struct Format {
    int fraction_bits, least_exponent;  // of the normal numbers, as 2^e
};
constexpr Format F16{10, -14}, BF16{7, -126}, E4M3{3, -6};
constexpr double MOST_E4M3 = 448;

// The bits, without sign, of a magnitude rounded to nearest even; may exceed those of the largest finite number.
uint32_t round_to(const Format& format, double magnitude) {
    if (magnitude == 0) return 0;
    int exponent;
    std::frexp(magnitude, &exponent);  // magnitude is in [2^(exponent - 1), 2^exponent)
    int unit = std::max(exponent - 1, format.least_exponent) - format.fraction_bits;  // of the last place, as 2^e
    auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, -unit)));
    int biased = unit + format.fraction_bits - format.least_exponent;  // 0 for the smallest normal and all subnormals
    return (uint32_t(biased) << format.fraction_bits) + units;
}

// The magnitude of finite bits without sign.
double value_of(const Format& format, uint32_t bits) {
    uint32_t exponent = bits >> format.fraction_bits, fraction = bits & ((1u << format.fraction_bits) - 1);
    if (exponent) fraction |= 1u << format.fraction_bits;
    return std::ldexp(fraction, int(exponent ? exponent - 1 : 0) + format.least_exponent - format.fraction_bits);
}

constexpr uint32_t CANONICAL_NAN = 0x7fffffff;  // of f32

float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Of the two 16-bit formats, which have infinities.
uint16_t to_16_bits(const Format& format, double value, uint16_t infinity) {
    if (std::isnan(value)) return 0x7fff;
    uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    if (std::isinf(value)) return sign | infinity;
    uint32_t bits = round_to(format, std::fabs(value));
    return sign | (bits < infinity ? bits : infinity);
}

}  // namespace

float f32_from_f16(uint16_t bits) {
    uint32_t magnitude = bits & 0x7fff, sign = uint32_t(bits & 0x8000) << 16;
    if (magnitude > 0x7c00) return from_bits(CANONICAL_NAN);
    if (magnitude == 0x7c00) return from_bits(sign | 0x7f800000);
    if (magnitude >= 0x0400) return from_bits(sign | ((magnitude << 13) + 0x38000000));
    float value = magnitude * 0x1p-24f;
    return sign ? -value : value;
}

float f32_from_bf16(uint16_t bits) {
    if ((bits & 0x7fff) > 0x7f80) return from_bits(CANONICAL_NAN);
    return from_bits(uint32_t{bits} << 16);
}

float f32_from_e4m3(uint8_t bits) {
    if ((bits & 0x7f) == 0x7f) return from_bits(CANONICAL_NAN);
    auto value = static_cast<float>(value_of(E4M3, bits & 0x7f));
    return bits & 0x80 ? -value : value;
}

uint16_t f16_from_f64(double value) { return to_16_bits(F16, value, 0x7c00); }
uint16_t f16_from_f32(float value) { return to_16_bits(F16, value, 0x7c00); }
uint16_t bf16_from_f64(double value) { return to_16_bits(BF16, value, 0x7f80); }

uint16_t bf16_from_f32(float value) {
    if (std::isnan(value)) return 0x7fff;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

uint8_t e4m3_from_f32(float value) {
    if (std::isnan(value)) return 0x7f;
    uint8_t sign = std::signbit(value) ? 0x80 : 0;
    double magnitude = std::fabs(double{value});
    return sign | round_to(E4M3, std::min(magnitude, MOST_E4M3));
}

}  // namespace machine
