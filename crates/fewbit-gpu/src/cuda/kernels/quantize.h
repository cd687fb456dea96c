// Quantizing, as `fewbit_quant::activation` defines it.
#pragma once
#include "functions.h"

// The scale of a block whose largest magnitude has these bits, and by what its elements are multiplied; 0 if its codes
// are 0.
DEVICE float scale_of(u32 largest, float *inverse) {
    *inverse = 0.0f;
    if (largest >= INFINITY_BITS) return of_bits(0x7fc00000u);
    if (largest < 0x0d800000u) return 0.0f;  // 2^-100
    float amax = of_bits(largest);
    *inverse = div_(127.0f, amax);
    return div_(amax, 127.0f);
}

DEVICE i32 code_of(float x, float inverse) {
    return inverse == 0.0f ? 0 : (i32)(bits_of(add_(mul_(x, inverse), ROUND)) - ROUND_BITS);
}

// Writes the form of 256 columns of a row, eight of which each thread of a warp has; `at`: where these are among the
// elements of the form. `x` becomes what was lost. All threads of the warp take part; those that are not there, beyond
// the end of the row, have zeros.
template <u32 BLOCK> DEVICE void quantize_eight(float *x, bool is_there, const Form &to, u64 at) {
    u32 largest = 0;
    UNROLL for (u32 k = 0; k < 8; k++) largest = most(largest, bits_of(x[k]) & 0x7fffffffu);
    UNROLL for (u32 width = 1; width < BLOCK / 8; width *= 2) largest = most(largest, shuffle_xor(largest, width));
    float inverse;
    float d = scale_of(largest, &inverse);
    u32 words[2] = {0, 0};
    i32 sum = 0;
    UNROLL for (u32 k = 0; k < 8; k++) {
        i32 code = code_of(x[k], inverse);
        words[k / 4] |= ((u32)code & 0xffu) << (k % 4 * 8);
        sum += code;
        x[k] = fma_(-d, float_(code), x[k]);
    }
    const u32 summed = BLOCK == 32 ? 32 : 16;
    UNROLL for (u32 width = 1; width < summed / 8; width *= 2) sum += shuffle_xor(sum, width);
    if (!is_there) return;
    to.codes[at / 4] = words[0];
    to.codes[at / 4 + 1] = words[1];
    if (at % BLOCK == 0) to.scales[at / BLOCK] = d;
    if (at % summed == 0) to.sums[at / summed] = sum;
}

// The forms of eight columns of row `row`, in all planes, of `n_rows` rows in each.
template <u32 BLOCK>
DEVICE void quantize_planes(const float *from, bool is_there, const Form &to, u64 row, u64 n_rows, u64 n_cols, u32 col,
                            u32 planes) {
    float x[8];
    UNROLL for (u32 k = 0; k < 8; k++) x[k] = from[k];
    for (u32 plane = 0; plane < planes; plane++) {
        quantize_eight<BLOCK>(x, is_there, to, (plane * n_rows + row) * n_cols + col);
    }
}
