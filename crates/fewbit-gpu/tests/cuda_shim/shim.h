// Stands in for CUDA when kernels are compiled for the host; see `device.h`. The threads of a block are fibres on one
// thread of the host: one runs until it has to wait for others.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;
typedef int8_t i8;
typedef int32_t i32;

struct alignas(16) uint4 {
    u32 x, y, z, w;
};

#define DEVICE static inline
#define SHARED static thread_local
#define UNROLL
#define UNROLL_4
#define ONCE
#define UNROLL_IF_SMALL

namespace shim {
// Where the running fibre is.
struct Index {
    u32 thread, block[3], grid[3];
};

Index &index();
u8 *dynamic_memory();
// Waits for all threads of the block that have not ended.
void wait_for_block();
// Gives `n` words of each thread of the warp to all of them: [32][8]. Valid until the thread exchanges twice more.
const u32 (*exchange(const u32 *words, u32 n))[8];

struct Register {
    Register(const char *name, u32 threads, u64 params_bytes, void (*run)(void **arguments));
};
}  // namespace shim

#define KERNEL(THREADS, NAME, PARAMS)                                                                        \
    static void NAME(const PARAMS p);                                                                        \
    static const shim::Register register_##NAME(MODULE "." #NAME, THREADS, sizeof(PARAMS), [](void **args) { \
        NAME(*static_cast<const PARAMS *>(args[0]));                                                         \
    });                                                                                                      \
    static void NAME(const PARAMS p)

DEVICE u32 bits_of(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    return bits;
}

DEVICE float of_bits(u32 bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// Compiled without contraction.
DEVICE float add_(float a, float b) { return a + b; }
DEVICE float sub_(float a, float b) { return a - b; }
DEVICE float mul_(float a, float b) { return a * b; }
DEVICE float div_(float a, float b) { return a / b; }
DEVICE float sqrt_(float a) { return sqrtf(a); }
DEVICE float fma_(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE float float_(i32 i) { return static_cast<float>(i); }

DEVICE float of_half(u16 half) {
    u32 magnitude = half & 0x7fffu, sign = static_cast<u32>(half & 0x8000u) << 16;
    if (magnitude >= 0x7c00u) return of_bits(sign | 0x7f800000u | magnitude << 13);
    // Multiplying corrects the exponent, also of subnormal numbers.
    return of_bits(sign | bits_of(of_bits(magnitude << 13) * of_bits(0x77800000u)));
}

DEVICE u16 to_half(float x) {
    u32 bits = bits_of(x), sign = bits >> 16 & 0x8000u, a = bits & 0x7fffffffu;
    if (a > 0x7f800000u) return static_cast<u16>(sign | 0x7e00u);
    if (a >= 0x477ff000u) return static_cast<u16>(sign | 0x7c00u);
    if (a >= 0x38800000u) return static_cast<u16>(sign | (a - 0x38000000u + 0xfffu + (a >> 13 & 1)) >> 13);
    // Adding this leaves a subnormal half, rounded to nearest even, in the low bits.
    return static_cast<u16>(sign | (bits_of(of_bits(a) + 0.5f) - 0x3f000000u));
}

template <class T> DEVICE T load(const T *at) { return *at; }

DEVICE i32 dot4(u32 a, u32 b, i32 sum) {
    for (u32 i = 0; i < 32; i += 8) sum += static_cast<i8>(a >> i) * static_cast<i8>(b >> i);
    return sum;
}

DEVICE u32 permute(u32 a, u32 b, u32 which) {
    u64 bytes = static_cast<u64>(b) << 32 | a;
    u32 out = 0;
    for (u32 i = 0; i < 4; i++) out |= (bytes >> (which >> (4 * i) & 7) * 8 & 0xff) << (8 * i);
    return out;
}

template <class T> DEVICE T shuffle_xor(T value, u32 mask) {
    static_assert(sizeof(T) == 4, "a word");
    u32 word;
    memcpy(&word, &value, 4);
    word = shim::exchange(&word, 1)[(shim::index().thread % 32) ^ mask][0];
    memcpy(&value, &word, 4);
    return value;
}

DEVICE void barrier() { shim::wait_for_block(); }
DEVICE u32 thread() { return shim::index().thread; }
DEVICE u32 block_x() { return shim::index().block[0]; }
DEVICE u32 block_y() { return shim::index().block[1]; }
DEVICE u32 block_z() { return shim::index().block[2]; }
DEVICE u32 blocks_x() { return shim::index().grid[0]; }
DEVICE u32 blocks_z() { return shim::index().grid[2]; }
DEVICE u8 *dynamic_shared() { return shim::dynamic_memory(); }

// `n_parts` of 16 bytes of each row: words 0 .. 2 of a thread are its rows of `a`, 2 for each part, then one of `b` for each.
DEVICE void mma_parts(i32 *c, const u32 *words, u32 n_parts) {
    u32 lane = shim::index().thread % 32;
    const u32(*all)[8] = shim::exchange(words, 3 * n_parts);
    for (u32 k = 0; k < 4; k++) {
        u32 row = lane / 4, column = lane % 4 * 2 + k % 2;
        for (u32 part = 0; part < n_parts; part++) {
            for (u32 quad = 0; quad < 4; quad++) {
                u32 a = all[row * 4 + quad][2 * part + k / 2], b = all[column * 4 + quad][2 * n_parts + part];
                c[k] = dot4(a, b, c[k]);
            }
        }
    }
}

DEVICE void mma_16(i32 *c, u32 a_low, u32 a_high, u32 b) {
    u32 words[3] = {a_low, a_high, b};
    mma_parts(c, words, 1);
}

DEVICE void mma_32(i32 *c, const u32 *a, const u32 *b) {
    u32 words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    mma_parts(c, words, 2);
}
