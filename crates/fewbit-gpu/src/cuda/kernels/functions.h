// The functions of `fewbit_kernels::math`, operation for operation.
#pragma once
#include "device.h"

// Adding this to a number below 2^22 leaves the number rounded to an integer in the low bits.
#define ROUND 12582912.0f
#define ROUND_BITS 0x4b400000u
#define INFINITY_BITS 0x7f800000u

DEVICE float exp_(float x) {
    float shifted = fma_(x, 1.44269504088896340736f, ROUND);
    float n = sub_(shifted, ROUND);
    float r = fma_(n, -0.6933594f, x);
    r = fma_(n, 2.1219444e-4f, r);
    float p = fma_(r, 1.0f / 5040.0f, 1.0f / 720.0f);
    p = fma_(p, r, 1.0f / 120.0f);
    p = fma_(p, r, 1.0f / 24.0f);
    p = fma_(p, r, 1.0f / 6.0f);
    p = fma_(p, r, 0.5f);
    p = fma_(p, r, 1.0f);
    p = fma_(p, r, 1.0f);
    float y = mul_(p, of_bits((bits_of(shifted) - ROUND_BITS + 127u) << 23));
    if (x < -87.0f) y = 0.0f;
    return x > 88.0f ? of_bits(INFINITY_BITS) : y;
}

DEVICE float silu(float x) { return div_(x, add_(1.0f, exp_(-x))); }

DEVICE float sigmoid(float x) { return div_(1.0f, add_(1.0f, exp_(-x))); }

DEVICE float gelu_tanh(float x) {
    float cubed = mul_(mul_(x, x), x);
    return div_(x, add_(1.0f, exp_(mul_(-1.595769f, fma_(cubed, 0.044715f, x)))));
}

// Plain comparisons, so that what is no number stays so.
DEVICE float clamped_silu(float gate, float up) {
    float g = gate > 7.0f ? 7.0f : gate;
    float u = up > 7.0f ? 7.0f : up;
    u = u < -7.0f ? -7.0f : u;
    return mul_(div_(g, add_(1.0f, exp_(mul_(-1.702f, g)))), add_(u, 1.0f));
}

DEVICE float tanh_(float x) {
    float s = mul_(x, x);
    float p = fma_(s, -1382.0f / 155925.0f, 62.0f / 2835.0f);
    p = fma_(p, s, -17.0f / 315.0f);
    p = fma_(p, s, 2.0f / 15.0f);
    p = fma_(p, s, -1.0f / 3.0f);
    float near = fma_(mul_(p, s), x, x);
    float magnitude = of_bits(bits_of(x) & 0x7fffffffu);
    float far = sub_(1.0f, div_(2.0f, add_(exp_(mul_(2.0f, magnitude)), 1.0f)));
    far = of_bits((bits_of(far) & 0x7fffffffu) | (bits_of(x) & 0x80000000u));
    return magnitude < 0.25f ? near : far;
}

// Lanes i and i + 8, then i + 4, i + 2, i + 1.
DEVICE float tree_sum(float *lanes) {
    for (u32 width = 8; width > 0; width /= 2) {
        for (u32 i = 0; i < width; i++) lanes[i] = add_(lanes[i], lanes[i + width]);
    }
    return lanes[0];
}
