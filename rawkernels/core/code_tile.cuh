// code_tile.cuh -- matrix products of a warp on tensor cores whose right operand is codes of 8 bits (codes.cuh). They
// lie in shared memory as they came, and become 16-bit numbers, all of them exactly, on their way into a fragment.
//
// ldmatrix gives a lane two neighbouring codes where it would give it a number. Lane 4 g + t then holds four in a word,
//
//     of rows (keys)                 row g: columns 4 t, 4 t + 1, 4 t + 2, 4 t + 3
//     of rows transposed (values)    row 2 t: columns 2 g, 2 g + 1; row 2 t + 1: columns 2 g, 2 g + 1
//
// and what is cheapest to widen together are codes 0 and 2, and codes 1 and 3. For keys this is an order of 16
// features, in which the left operand must have them too (`feature_at`); for values a fragment of the even columns of
// 16 and one of the odd ones (`col`).
#pragma once
#include "codes.cuh"
#include "mma_tile.cuh"

namespace cf {

// A tile of codes: two in the place of a number, so 16 in a chunk of 16 bytes.
template <int ROWS, int COLS> using CodeTile = MmaTile<ROWS, COLS / 2>;

// Of a word, codes 0 and 2 (pairs[0]), and 1 and 3 (pairs[1]), as numbers of type T in units of UNIT. float8's code for
// NaN is 480, as everywhere: scales carry NaN. No step has more than one constant: ptxas loads a second one each time.
template <typename T, typename Code> struct CodePairs;

// With their sign bits turned, codes are 0 to 255: as the bits of float16 these are subnormal numbers, 2^-24 apart, and
// 128 of them too many.
template <> struct CodePairs<float16, int8_code> {
    static constexpr float UNIT = 0x1p24f;
    static __device__ __forceinline__ void widen(uint32_t (&pairs)[2], uint32_t word) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            pairs[i] = ptx::add_f16x2(__byte_perm(word ^ 0x80808080u, 0, 0x4240 + 0x101 * i), 0x80808080u);
    }
};
// As the bits of bfloat16 they are 2^-133 apart; 0x7f00 is 2^127, and 0xc000 is -2.
template <> struct CodePairs<bfloat16, int8_code> {
    static constexpr float UNIT = 0x1p6f;
    static __device__ __forceinline__ void widen(uint32_t (&pairs)[2], uint32_t word) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t codes = __byte_perm(word ^ 0x80808080u, 0, 0x4240 + 0x101 * i);
            pairs[i] = ptx::fma_bf16x2(codes, 0x7f007f00u, 0xc000c000u);
        }
    }
};
// Exponent and fraction move to their places; the exponent's bias is then 15 in place of 7.
template <> struct CodePairs<float16, float8_e4m3fn> {
    static constexpr float UNIT = 0x1p8f;
    static __device__ __forceinline__ void widen(uint32_t (&pairs)[2], uint32_t word) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t codes = word << 8 * (1 - i);
            pairs[i] = (codes & 0x7f007f00u) >> 1 | (codes & 0x80008000u);
        }
    }
};
// Here it is 127, too much for a unit; 0x7b80 is 2^120.
template <> struct CodePairs<bfloat16, float8_e4m3fn> {
    static constexpr float UNIT = 1;
    static __device__ __forceinline__ void widen(uint32_t (&pairs)[2], uint32_t word) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t codes = word << 8 * (1 - i);
            pairs[i] = ptx::fma_bf16x2((codes & 0x7f007f00u) >> 4 | (codes & 0x80008000u), 0x7b807b80u, 0x80008000u);
        }
    }
};

// For products of 16 rows of codes with operands of dtype DTYPE.
template <Dtype DTYPE, typename Code, int WARPS> struct CodeMma {
    using Units = Mma<DTYPE, WARPS>;
    using WideUnits = Mma<Dtype::bfloat16, WARPS>;
    using Keys = CodePairs<typename Units::T, Code>;
    using Values = CodePairs<bfloat16, Code>;
    static constexpr float PRODUCT_UNIT = Keys::UNIT, OUTPUT_UNIT = Values::UNIT;
    // Weights that hold the scales of values have any size: bfloat16 has the exponents, two of it float16's digits.
    static constexpr int PARTS = DTYPE == Dtype::float16 ? 2 : 1;

    // Where the left operand of mma_abt has a feature.
    static __device__ __forceinline__ int feature_at(int feature) {
        return feature / 16 * 16 + feature % 2 * 8 + feature % 16 / 4 * 2 + feature % 4 / 2;
    }
    // Which column of a result of mma_ab number i of fragment n is.
    static __device__ __forceinline__ int col(int n, int i) {
        return n / 2 * 16 + Units::lane() % 4 * 4 + i % 2 * 2 + n % 2;
    }

    // s[m][n] += a @ b^T / PRODUCT_UNIT
    template <int M, typename TileA, typename TileB>
    static __device__ __forceinline__ void mma_abt(float (&s)[M][2][4], const TileA& a, const TileB& b) {
        static_assert(TileA::ROWS == 16 * M && TileB::ROWS == 16 && TileA::COLS == 2 * TileB::COLS,
                      "a has the rows of s, b its columns, and both one depth");
        const int row = Units::lane() % 16, chunk = Units::lane() / 16;
        const uint32_t right_at = b.address(row, chunk);
#pragma unroll
        for (int i = 0; i < TileB::CHUNKS / 2; ++i) {
            uint32_t words[4];
            ptx::ldmatrix_x4(words, TileB::further(right_at, i));
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                uint32_t left[M][4];
#pragma unroll
                for (int m = 0; m < M; ++m)
                    ptx::ldmatrix_x4(left[m], TileA::further(a.address(16 * m + row, chunk), 2 * i + k));
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    uint32_t right[2];
                    Keys::widen(right, words[2 * k + n]);
#pragma unroll
                    for (int m = 0; m < M; ++m) Units::mma(s[m][n], left[m], right[0], right[1]);
                }
            }
        }
    }

    // The left operand of mma_ab: s with its columns scaled, as a sum of PARTS numbers.
    template <int M>
    static __device__ __forceinline__ void to_operand(
        uint32_t (&p)[PARTS][M][4], const float (&s)[M][2][4], const float (&scales)[2][2]
    ) {
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int n = i / 2, half = i % 2;
                float low = s[m][n][2 * half] * scales[n][0], high = s[m][n][2 * half + 1] * scales[n][1];
#pragma unroll
                for (int part = 0; part < PARTS; ++part) {
                    const uint32_t pair = p[part][m][i] = ptx::cvt_bf16x2_f32(low, high);
                    low -= __builtin_bit_cast(float, pair << 16);
                    high -= __builtin_bit_cast(float, pair & 0xffff0000u);
                }
            }
    }

    // o[m][n] += p @ v / OUTPUT_UNIT, of the columns that `col` says
    template <int M, int N, typename TileV>
    static __device__ __forceinline__ void mma_ab(
        float (&o)[M][N][4], const uint32_t (&p)[PARTS][M][4], const TileV& v
    ) {
        static_assert(TileV::ROWS == 16 && 2 * TileV::COLS == 8 * N && N % 4 == 0, "v has the columns of o");
        const uint32_t at = v.address(Units::lane() % 16, Units::lane() / 16);
#pragma unroll
        for (int n = 0; n < N; n += 4) {
            uint32_t words[4];
            ptx::ldmatrix_x4_trans(words, TileV::further(at, n / 4));
#pragma unroll
            for (int chunk = 0; chunk < 2; ++chunk) {
                uint32_t above[2], below[2];    // rows 0 to 7 and 8 to 15, of even and of odd columns
                Values::widen(above, words[2 * chunk]);
                Values::widen(below, words[2 * chunk + 1]);
#pragma unroll
                for (int part = 0; part < PARTS; ++part)
#pragma unroll
                    for (int odd = 0; odd < 2; ++odd)
#pragma unroll
                        for (int m = 0; m < M; ++m)
                            WideUnits::mma(o[m][n + 2 * chunk + odd], p[part][m], above[odd], below[odd]);
            }
            if (N > 16 && n % 8 == 4) __syncwarp();     // ptxas would have more fragments ready than registers
        }
    }
};

}  // namespace cf
