// The weight types: how the panels that `fewbit_kernels` packs are read. A panel has 16 rows, all scales and minimums
// first, then the codes of 32 columns at a time.
#pragma once
#include "functions.h"

// How a block of 256 stores the integer scales of its sub-blocks; see `q256` in `fewbit_kernels`.
enum Scales { ONE, SIGNED, ODD, NIBBLES, SIX_BITS };

DEVICE constexpr u32 four(i32 a, i32 b, i32 c, i32 d) {
    return (u32)(a & 0xff) | (u32)(b & 0xff) << 8 | (u32)(c & 0xff) << 16 | (u32)(d & 0xff) << 24;
}

// Codes that stand for themselves, less an offset.
template <i32 OFFSET_> struct Offset {
    static constexpr i32 OFFSET = OFFSET_;
    DEVICE u32 levels(u32 codes) { return codes; }
};

// Codes that are indices into a table of 16 signed bytes, here as four words.
template <u32 A, u32 B, u32 C, u32 D> struct Table {
    static constexpr i32 OFFSET = 0;
    DEVICE u32 levels(u32 codes) {
        u32 which = codes & 0x07070707u;
        which |= which >> 4;
        which = (which & 0xffu) | (which >> 8 & 0xff00u);
        u32 low = permute(A, B, which);
        if (C == 0 && D == 0) return low;
        u32 high = permute(C, D, which);
        u32 is_high = (codes >> 3 & 0x01010101u) * 0xffu;
        return (low & ~is_high) | (high & is_high);
    }
};

typedef Table<four(-127, -104, -83, -65), four(-49, -35, -22, -10), four(1, 13, 25, 38), four(53, 69, 89, 113)> LevelsIq4;
typedef Table<four(0, 1, 2, 3), four(4, 6, 8, 12), four(0, -1, -2, -3), four(-4, -6, -8, -12)> LevelsFp4;
typedef Table<four(8, 25, 43, 0), four(-8, -25, -43, 0), 0, 0> LevelsIq2;
typedef Table<four(4, 12, 20, 28), four(36, 44, 52, 62), four(-4, -12, -20, -28), four(-36, -44, -52, -62)> LevelsIq3Xxs;
typedef Table<four(1, 3, 5, 7), four(9, 11, 13, 15), four(-1, -3, -5, -7), four(-9, -11, -13, -15)> LevelsIq3S;
typedef Table<four(-7, 1, 9, 0), four(-9, -1, 7, 0), 0, 0> LevelsIq1;

// A quantized type. `FACTOR`: the reciprocal of what stored scales are multiplied by.
template <u32 BLOCK_, u32 BITS_, class Levels, bool HAS_MIN_, Scales SCALES_ = ONE, u32 SUB_ = 32, u32 FACTOR_ = 1,
          bool IS_BF16 = false>
struct Quantized {
    static constexpr bool IS_FLOAT = false;
    static constexpr u32 BLOCK = BLOCK_;
    static constexpr i32 OFFSET = Levels::OFFSET;
    static constexpr bool HAS_MIN = HAS_MIN_;
    // Columns under one integer scale: 16 or 32.
    static constexpr u32 SUB = SUB_;
    static constexpr bool HAS_SCALES = SCALES_ != ONE;
    static constexpr u32 N_SUBS = 256 / SUB_;
    static constexpr u32 FLOATS = HAS_MIN_ ? 64 : 32;
    // Bytes of scales and minimums of a block of a panel.
    static constexpr u32 META =
        FLOATS + (SCALES_ == ONE        ? 0
                  : SCALES_ == ODD      ? 8 * N_SUBS
                  : SCALES_ == SIX_BITS ? 32 * N_SUBS
                                        : 16 * N_SUBS);
    // Bytes of the codes of 32 columns of a panel.
    static constexpr u32 GROUP = 64 * BITS_;

    DEVICE float scale(const u8 *meta, u32 row) {
        u16 stored = load((const u16 *)meta + row);
        float d = IS_BF16 ? of_bits((u32)stored << 16) : of_half(stored);
        return FACTOR_ == 1 ? d : mul_(d, 1.0f / FACTOR_);
    }

    DEVICE float minimum(const u8 *meta, u32 row) { return of_half(load((const u16 *)meta + 16 + row)); }

    // The integer scale and minimum of a sub-block.
    DEVICE void integers(const u8 *meta, u32 sub, u32 row, i32 *scale, i32 *minimum) {
        const u8 *ints = meta + FLOATS;
        *minimum = 0;
        if (SCALES_ == ONE) {
            *scale = 1;
        } else if (SCALES_ == SIGNED) {
            *scale = (i8)load(ints + sub * 16 + row);
        } else if (SCALES_ == ODD) {
            *scale = 2 * (load(ints + sub / 2 * 16 + row) >> (4 * (sub & 1)) & 15) + 1;
        } else if (SCALES_ == NIBBLES) {
            u32 both = load(ints + sub * 16 + row);
            *scale = both & 15;
            *minimum = both >> 4;
        } else {
            *scale = load(ints + sub * 16 + row);
            *minimum = load(ints + (N_SUBS + sub) * 16 + row);
        }
    }

    // The levels of columns 4 * q .. + 4 and of columns 16 + 4 * q .. + 4 of a row, of a group of 32; q < 4.
    DEVICE void quads(const u8 *group, u32 q, u32 row, u32 *first, u32 *second) {
        const u32 *words = (const u32 *)group + row;
        u32 a, b;
        if (BITS_ == 8) {
            a = load(words + q * 16);
            b = load(words + q * 16 + 64);
        } else if (BITS_ >= 4) {
            u32 word = load(words + q * 16);
            a = word & 0x0f0f0f0fu;
            b = word >> 4 & 0x0f0f0f0fu;
            if (BITS_ == 5) {
                u32 bits = load(words + 64);
                a |= (bits >> q & 0x01010101u) << 4;
                b |= (bits >> (q + 4) & 0x01010101u) << 4;
            } else if (BITS_ == 6) {
                a |= (load(words + 64) >> (2 * q) & 0x03030303u) << 4;
                b |= (load(words + 80) >> (2 * q) & 0x03030303u) << 4;
            }
        } else {
            a = load(words) >> (2 * q) & 0x03030303u;
            b = load(words + 16) >> (2 * q) & 0x03030303u;
            if (BITS_ == 3) {
                u32 bits = load(words + 32);
                a |= (bits >> q & 0x01010101u) << 2;
                b |= (bits >> (q + 4) & 0x01010101u) << 2;
            }
        }
        *first = Levels::levels(a);
        *second = Levels::levels(b);
    }
};

// A type whose weights are floats, in columns of 16.
template <u32 BYTES_, bool IS_BF16> struct Floats {
    static constexpr bool IS_FLOAT = true;
    // Bytes of a weight.
    static constexpr u32 BYTES = BYTES_;
    DEVICE float value(const u8 *at) {
        if (BYTES_ == 4) return of_bits(load((const u32 *)at));
        u16 stored = load((const u16 *)at);
        return IS_BF16 ? of_bits((u32)stored << 16) : of_half(stored);
    }
};

struct Types {
    typedef Floats<4, false> F32;
    typedef Floats<2, false> F16;
    typedef Floats<2, true> BF16;
    typedef Quantized<32, 4, Offset<8>, false> Q4_0;
    typedef Quantized<32, 4, Offset<0>, true> Q4_1;
    typedef Quantized<32, 5, Offset<16>, false> Q5_0;
    typedef Quantized<32, 5, Offset<0>, true> Q5_1;
    // Its codes are packed as signed bytes.
    typedef Quantized<32, 8, Offset<0>, false> Q8_0;
    typedef Quantized<32, 4, LevelsIq4, false> IQ4_NL;
    typedef Quantized<32, 4, LevelsFp4, false, ONE, 32, 1, true> MXFP4;
    typedef Quantized<256, 2, Offset<0>, true, NIBBLES, 16> Q2_K;
    typedef Quantized<256, 3, Offset<4>, false, SIGNED, 16> Q3_K;
    typedef Quantized<256, 4, Offset<0>, true, SIX_BITS, 32> Q4_K;
    typedef Quantized<256, 5, Offset<0>, true, SIX_BITS, 32> Q5_K;
    typedef Quantized<256, 6, Offset<32>, false, SIGNED, 16> Q6_K;
    typedef Quantized<256, 4, LevelsIq4, false, SIGNED, 32> IQ4_XS;
    typedef Quantized<256, 4, LevelsIq3Xxs, false, ODD, 32, 4> IQ3_XXS;
    typedef Quantized<256, 4, LevelsIq3S, false, ODD, 32> IQ3_S;
    typedef Quantized<256, 3, LevelsIq2, false, ODD, 32, 8> IQ2_XXS;
    typedef Quantized<256, 3, LevelsIq2, false, ODD, 16, 8> IQ2_S;
    typedef Quantized<256, 3, LevelsIq1, false, ODD, 32, 8> IQ1_S;
    typedef Quantized<256, 3, LevelsIq1, false, ODD, 16, 8> IQ1_M;
    typedef Quantized<256, 2, Offset<1>, false> TQ2_0;
};
