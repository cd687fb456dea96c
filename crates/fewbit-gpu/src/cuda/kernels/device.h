// What kernels use of the device, under names of ours. The tests supply the same for the host (`FEWBIT_HOST`).
//
// Every float operation is one of the functions below: rounded once, to nearest even, with subnormal numbers. A plain
// `a * b + c` could become one fused operation.
#pragma once

#ifdef FEWBIT_HOST
#include "shim.h"
#else

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef int i32;

#define DEVICE static __device__ __forceinline__
#define KERNEL(THREADS, NAME, PARAMS) extern "C" __global__ void __launch_bounds__(THREADS) NAME(const PARAMS p)
#define SHARED __shared__
#define UNROLL _Pragma("unroll")
#define UNROLL_4 _Pragma("unroll 4")
#define ONCE _Pragma("unroll 1")
// Only where the template parameter N is small, as the body is repeated N times already.
#define UNROLL_IF_SMALL _Pragma("unroll (N >= 4 ? 1 : 4)")

DEVICE float add_(float a, float b) { return __fadd_rn(a, b); }
DEVICE float sub_(float a, float b) { return __fsub_rn(a, b); }
DEVICE float mul_(float a, float b) { return __fmul_rn(a, b); }
DEVICE float div_(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float sqrt_(float a) { return __fsqrt_rn(a); }
DEVICE float fma_(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float float_(i32 i) { return __int2float_rn(i); }
DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float of_bits(u32 bits) { return __uint_as_float(bits); }

DEVICE float of_half(u16 half) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
    return x;
}

DEVICE u16 to_half(float x) {
    u16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
    return half;
}

// Loads from memory that no thread of the launch writes.
template <class T> DEVICE T load(const T *at) { return __ldg(at); }

// The sum of the products of four signed bytes and `sum`.
DEVICE i32 dot4(u32 a, u32 b, i32 sum) {
    i32 result;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
}

// Bytes of `a` and `b`, by the lower four nibbles of `which`, each below 8.
DEVICE u32 permute(u32 a, u32 b, u32 which) { return __byte_perm(a, b, which); }

// All threads of a warp take part.
template <class T> DEVICE T shuffle_xor(T value, u32 mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

DEVICE void barrier() { __syncthreads(); }
DEVICE u32 thread() { return threadIdx.x; }
DEVICE u32 block_x() { return blockIdx.x; }
DEVICE u32 block_y() { return blockIdx.y; }
DEVICE u32 block_z() { return blockIdx.z; }
DEVICE u32 blocks_x() { return gridDim.x; }
DEVICE u32 blocks_z() { return gridDim.z; }

DEVICE u8 *dynamic_shared() {
    extern __shared__ __align__(16) u8 memory[];
    return memory;
}

// c += a b: 16 rows of `a` and 8 columns of `b`, of signed bytes. Thread `l` of a warp holds, as words of four bytes,
// rows l / 4 and l / 4 + 8 of `a` and column l / 4 of `b`, bytes 4 * (l % 4) .. + 4; of `c` the same rows, columns
// 2 * (l % 4) and the next.
DEVICE void mma_16(i32 *c, u32 a_low, u32 a_high, u32 b) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a_low), "r"(a_high), "r"(b));
#else
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(c[0]), "+r"(c[1])
        : "r"(a_low), "r"(b));
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(c[2]), "+r"(c[3])
        : "r"(a_high), "r"(b));
#endif
}

// The same with 32 bytes of each row: a[0], a[1] and b[0] are those of `mma_16`, a[2], a[3] and b[1] the 16 after them.
DEVICE void mma_32(i32 *c, const u32 *a, const u32 *b) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    mma_16(c, a[0], a[1], b[0]);
    mma_16(c, a[2], a[3], b[1]);
#endif
}
#endif

#include "params.h"

// The larger number; the first one if either is NaN, as the CPU has it.
DEVICE float larger(float a, float b) { return b > a ? b : a; }
DEVICE u32 least(u32 a, u32 b) { return a < b ? a : b; }
DEVICE u32 most(u32 a, u32 b) { return a > b ? a : b; }
