// Norms, quantization, and what is done for each element of rows.
#include "quantize.h"

// How many elements of a row are added up at a time.
#define STRETCH 2048

// A block for each part of a row: 16 strided chains, then a tree; if the mean is subtracted, first of its elements.
KERNEL(256, rms_norm, NormParams) {
    SHARED float elements[STRETCH];
    SHARED float lanes[16];
    SHARED float mean, scale;
    u32 t = thread(), n = p.part;
    u64 base = ((u64)block_x() * p.n_parts + block_y()) * n;
    float sum = 0.0f;
    if (p.has_mean) {
        for (u32 first = 0; first < n; first += STRETCH) {
            u32 count = least(STRETCH, n - first);
            for (u32 i = t; i < count; i += 256) elements[i] = p.from[base + first + i];
            barrier();
            if (t < 16) {
                for (u32 i = t; i < count; i += 16) sum = add_(sum, elements[i]);
            }
            barrier();
        }
        if (t < 16) lanes[t] = sum;
        barrier();
        sum = 0.0f;
    }
    // Subtracting 0 changes nothing.
    if (t == 0) mean = p.has_mean ? div_(tree_sum(lanes), (float)n) : 0.0f;
    barrier();
    for (u32 first = 0; first < n; first += STRETCH) {
        u32 count = least(STRETCH, n - first);
        for (u32 i = t; i < count; i += 256) elements[i] = sub_(p.from[base + first + i], mean);
        barrier();
        if (t < 16) {
            for (u32 i = t; i < count; i += 16) sum = fma_(elements[i], elements[i], sum);
        }
        barrier();
    }
    if (t < 16) lanes[t] = sum;
    barrier();
    if (t == 0) scale = div_(1.0f, sqrt_(add_(div_(tree_sum(lanes), (float)n), p.eps)));
    barrier();
    for (u32 i = t; i < n; i += 256) {
        p.to[base + i] = mul_(mul_(sub_(p.from[base + i], mean), scale), p.weight[i]);
    }
    if (p.q32.codes == nullptr && p.q256.codes == nullptr) return;
    barrier();
    for (u32 first = t / 32 * 256; first < n; first += 8 * 256) {
        u32 col = first + t % 32 * 8;
        bool is_there = col < n;
        float x[8];
        UNROLL for (u32 k = 0; k < 8; k++) x[k] = is_there ? p.to[base + col + k] : 0.0f;
        u32 row = block_x();
        if (p.q32.codes != nullptr) quantize_planes<32>(x, is_there, p.q32, row, p.n_rows, n, col, p.planes);
        if (p.q256.codes != nullptr) quantize_planes<256>(x, is_there, p.q256, row, p.n_rows, n, col, p.planes);
    }
}

template <u32 BLOCK> DEVICE void quantize(const QuantizeParams &p) {
    u32 first = block_y() * 2048 + thread() / 32 * 256;
    if (first >= p.n_cols) return;
    u32 row = block_x(), col = first + thread() % 32 * 8;
    bool is_there = col < p.n_cols;
    float x[8];
    UNROLL for (u32 k = 0; k < 8; k++) x[k] = is_there ? p.from[(u64)row * p.n_cols + col + k] : 0.0f;
    quantize_planes<BLOCK>(x, is_there, p.to, row, p.n_rows, p.n_cols, col, p.planes);
}

KERNEL(256, quantize_32, QuantizeParams) { quantize<32>(p); }
KERNEL(256, quantize_256, QuantizeParams) { quantize<256>(p); }

struct Silu {
    DEVICE float of(float gate, float up) { return mul_(silu(gate), up); }
};

struct Gelu {
    DEVICE float of(float gate, float up) { return mul_(gelu_tanh(gate), up); }
};

struct Clamped {
    DEVICE float of(float gate, float up) { return clamped_silu(gate, up); }
};

template <class Function> DEVICE void gate(const GateParams &p) {
    u32 first = block_y() * 2048 + thread() / 32 * 256;
    if (first >= p.n_cols) return;
    u32 row = block_x(), col = first + thread() % 32 * 8;
    u64 at = (u64)row * p.n_cols + col;
    float x[8];
    UNROLL for (u32 k = 0; k < 8; k++) {
        x[k] = 0.0f;
        if (col + k < p.n_cols) {
            x[k] = Function::of(p.gate[at + k], p.up[at + k]);
            p.gate[at + k] = x[k];
        }
    }
    bool is_there = col < p.n_cols;
    if (p.q32.codes != nullptr) quantize_planes<32>(x, is_there, p.q32, row, p.n_rows, p.n_cols, col, 1);
    if (p.q256.codes != nullptr) quantize_planes<256>(x, is_there, p.q256, row, p.n_rows, p.n_cols, col, 1);
}

KERNEL(256, gate_silu, GateParams) { gate<Silu>(p); }
KERNEL(256, gate_gelu, GateParams) { gate<Gelu>(p); }
KERNEL(256, gate_clamped, GateParams) { gate<Clamped>(p); }

// The column of a thread, and where its element is; returns from the kernel if it has none.
#define ELEMENT                                \
    u32 col = block_y() * 256 + thread();      \
    if (col >= p.n_cols) return;               \
    u64 at = (u64)block_x() * p.n_cols + col;

KERNEL(256, bias, RowsParams) {
    ELEMENT
    p.to[at] = add_(p.to[at], p.other[col]);
}

KERNEL(256, temper, RowsParams) {
    ELEMENT
    p.to[at] = mul_(p.to[at], p.other[block_x()]);
}

KERNEL(256, add, RowsParams) {
    ELEMENT
    p.to[at] = fma_(p.other[at], p.a, p.to[at]);
}

KERNEL(256, scale, RowsParams) {
    ELEMENT
    p.to[at] = mul_(p.to[at], p.a);
}

KERNEL(256, softcap, RowsParams) {
    ELEMENT
    p.to[at] = mul_(p.a, tanh_(mul_(p.to[at], p.b)));
}

KERNEL(256, squared_relu, RowsParams) {
    ELEMENT
    // What is no number stays so.
    float x = p.to[at], positive = x < 0.0f ? 0.0f : x;
    p.to[at] = mul_(positive, positive);
}

// Elements of a pair are `apart`; the first one of pair i is i * stride.
DEVICE void rotate(const RotateParams &p, u32 stride, u32 apart) {
    u32 i = block_y() * 256 + thread(), row = block_x();
    if (i >= p.n_cols / p.head_dim * p.half) return;
    u32 head = i / p.half, pair = i % p.half;
    float c = p.cos[(u64)row * p.half + pair], s = p.sin[(u64)row * p.half + pair];
    float *first = p.to + (u64)row * p.n_cols + head * p.head_dim + pair * stride;
    float a = first[0], b = first[apart];
    first[0] = fma_(a, c, -mul_(b, s));
    first[apart] = fma_(b, c, mul_(a, s));
}

KERNEL(256, rotate_interleaved, RotateParams) { rotate(p, 2, 1); }
KERNEL(256, rotate_half_split, RotateParams) { rotate(p, 1, p.half); }
