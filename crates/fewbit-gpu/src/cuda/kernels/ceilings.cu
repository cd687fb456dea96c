// What measures the limits of a device. The results are written, so that nothing can be left out.
#include "device.h"

// Reads a buffer.
KERNEL(256, read, CeilingParams) {
    u64 stride = (u64)blocks_x() * 256, id = (u64)block_x() * 256 + thread();
    u32 all = 0;
    for (u64 i = id; i < p.n; i += stride) {
        uint4 four = load(p.from + i);
        all ^= four.x ^ four.y ^ four.z ^ four.w;
    }
    p.to[id] = all;
}

// Multiplies bytes on tensor cores, in 16 independent sums.
KERNEL(256, multiply, CeilingParams) {
    u32 id = block_x() * 256 + thread();
    u32 a[4] = {id * 0x9e3779b9u, id ^ 0x85ebca6bu, ~id, id << 3}, b[2] = {id, id * 5};
    i32 c[16][4];
    UNROLL for (u32 i = 0; i < 16; i++) c[i][0] = c[i][1] = c[i][2] = c[i][3] = (i32)i;
    for (u64 round = 0; round < p.n; round++) {
        UNROLL for (u32 i = 0; i < 16; i++) mma_32(c[i], a, b);
        b[0] += 0x01030507u;
    }
    i32 all = 0;
    UNROLL for (u32 i = 0; i < 16; i++) all ^= c[i][0] ^ c[i][1] ^ c[i][2] ^ c[i][3];
    p.to[id] = (u32)all;
}
