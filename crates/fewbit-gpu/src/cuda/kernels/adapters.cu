// What adapters add to products: first t = scale * (A x), then y += B t. A chain for each output, over the inputs in order.
#include "functions.h"

#define STRETCH 128

// A block for 16 outputs of a row. All threads fetch, 16 add up.
DEVICE float chain(const AdaptParams &p, u64 x_row) {
    SHARED float w[STRETCH][17];
    SHARED float x[STRETCH];
    u32 t = thread(), first_out = block_y() * 16;
    float sum = 0.0f;
    for (u32 first = 0; first < p.n_in; first += STRETCH) {
        u32 count = least(STRETCH, p.n_in - first);
        barrier();
        for (u32 i = t; i < 16 * STRETCH; i += 256) {
            u32 out = i / STRETCH, k = i % STRETCH;
            if (k < count && first_out + out < p.n_out) w[k][out] = p.w[(u64)(first_out + out) * p.n_in + first + k];
        }
        if (t < count) x[t] = p.x[x_row * p.n_in + first + t];
        barrier();
        if (t < 16 && first_out + t < p.n_out) {
            for (u32 k = 0; k < count; k++) sum = fma_(w[k][t], x[k], sum);
        }
    }
    return sum;
}

KERNEL(256, adapt_down, AdaptParams) {
    AdaptedRow row = p.rows[block_x()];
    float sum = chain(p, row.row);
    u32 out = block_y() * 16 + thread();
    if (thread() < 16 && out < p.n_out) p.to[(u64)block_x() * p.n_out + out] = mul_(sum, row.scale);
}

KERNEL(256, adapt_up, AdaptParams) {
    AdaptedRow row = p.rows[block_x()];
    float sum = chain(p, block_x());
    u32 out = block_y() * 16 + thread();
    if (thread() >= 16 || out >= p.n_out) return;
    float *to = p.to + (u64)row.row * p.n_out + out;
    *to = add_(*to, sum);
}
