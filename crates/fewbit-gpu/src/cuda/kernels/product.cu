// Products of a matrix of one type (the macro TYPE) with rows of a batch. One chain of fused multiply-adds for each output,
// over the blocks of the columns in order; the sums inside a block are integers.
//
// For few rows, each warp reads other columns of a panel of 16 matrix rows, and what blocks add to the chains goes through
// shared memory. For many, each warp computes a panel from its first to its last column, on tensor cores.
#include "types.h"

typedef Types::TYPE W;

// A row of the batch that an expert takes, and where its output goes.
struct Place {
    u32 from, to;
};

// What a block adds to the chain of an output: x * y, then z * w in types with minimums.
template <bool HAS_MIN> struct Terms {
    float x, y;
    DEVICE float add(const Terms &terms, float sum) { return fma_(terms.x, terms.y, sum); }
};

template <> struct Terms<true> {
    float x, y, z, w;
    DEVICE float add(const Terms &terms, float sum) { return fma_(terms.z, terms.w, fma_(terms.x, terms.y, sum)); }
};

DEVICE void write(const ProductParams &p, u64 row, u32 out, float y) {
    float *to = p.to + row * p.n_out + out;
    *to = p.adds ? add_(*to, y) : y;
}

// Quantized weights, N rows at once. A thread sums up blocks of 32 columns, or half a block of 256, of a matrix row.
template <class W, u32 N, bool IS_FLOAT = W::IS_FLOAT> struct Few {
    static constexpr bool IS_256 = W::BLOCK == 256;
    // Blocks of 32 that a thread takes before their terms are added up.
    static constexpr u32 LIMIT = (W::HAS_MIN ? 4 : 8) / N;
    static constexpr u32 BLOCKS = IS_256 ? 1 : LIMIT > 4 ? 4 : LIMIT > 1 ? LIMIT : 1;
    // Blocks that all threads take together.
    static constexpr u32 STRETCH = IS_256 ? 8 : 16 * BLOCKS;
    typedef Terms<W::HAS_MIN> T;
    // With two buffers, the chains of one stretch run while other warps begin the next one.
    static constexpr u32 BUFFERS = 2 * sizeof(T) * STRETCH * N * 16 <= 32768 ? 2 : 1;

    // `rows`: the rows of the form that are computed at once, first those of plane 0. If these are `n_there`, further
    // planes take further passes; if there are more, the second plane comes after the first one.
    DEVICE void run(const ProductParams &p, const u8 *weights, const u32 (&rows)[N], u32 n_there, u32 to) {
        SHARED T terms[BUFFERS][STRETCH][N][16];
        SHARED float planes[N][16];
        u32 t = thread(), lane = t % 16, half = t / 16 % 2, warp = t / 32;
        const u8 *panel = weights + block_x() * p.panel_bytes;
        u32 n_blocks = p.n_cols / W::BLOCK, turn = 0;
        bool is_one_pass = p.planes * n_there <= N;
        u32 n_passes = is_one_pass ? 1 : p.planes;
        float y = 0.0f;
        for (u32 pass = 0; pass < n_passes; pass++) {
            float z = 0.0f;
            for (u32 first = 0; first < n_blocks; first += STRETCH) {
                u32 buffer = turn % BUFFERS;
                turn++;
                if (BUFFERS == 1) barrier();
                if constexpr (IS_256) {
                    u32 b = first + warp;
                    if (b < n_blocks) block_256(p, panel, b, half, lane, pass, rows, terms[buffer][warp]);
                } else {
                    UNROLL for (u32 i = 0; i < BLOCKS; i++) {
                        u32 at = (warp * 2 + half) * BLOCKS + i;
                        if (first + at < n_blocks) {
                            block_32(p, panel, first + at, lane, pass, rows, terms[buffer][at]);
                        }
                    }
                }
                barrier();
                if (t < 16 * N) {
                    u32 count = least(STRETCH, n_blocks - first);
                    for (u32 i = 0; i < count; i++) z = T::add(terms[buffer][i][t / 16][lane], z);
                }
            }
            y = pass == 0 ? z : add_(y, z);
        }
        if (is_one_pass && p.planes == 2) {
            if (t < 16 * N) planes[t / 16][lane] = y;
            barrier();
            if (t / 16 < n_there) y = add_(y, planes[t / 16 + n_there][lane]);
        }
        u32 out = block_x() * 16 + lane;
        if (t / 16 < n_there && out < p.n_out) write(p, (u64)to + t / 16, out, y);
    }

    // The row of the form that a pass reads.
    DEVICE u64 form_row(const ProductParams &p, u32 pass, u32 row) { return (u64)pass * p.n_rows + row; }

    DEVICE void inputs(const ProductParams &p, u64 element, u32 *x) {
        const uint4 *from = (const uint4 *)(p.form.codes + element / 4);
        uint4 a = load(from), b = load(from + 1);
        x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
        x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    }

    DEVICE void block_32(const ProductParams &p, const u8 *panel, u32 b, u32 lane, u32 pass, const u32 (&rows)[N],
                         T (*to)[16]) {
        const u8 *meta = panel + b * W::META;
        float d = W::scale(meta, lane), m = W::HAS_MIN ? W::minimum(meta, lane) : 0.0f;
        u32 q[8], x[8];
        UNROLL for (u32 i = 0; i < 4; i++) {
            W::quads(panel + p.meta_bytes + b * W::GROUP, i, lane, &q[i], &q[i + 4]);
        }
        UNROLL for (u32 n = 0; n < N; n++) {
            u64 element = form_row(p, pass, rows[n]) * p.n_cols + b * 32;
            inputs(p, element, x);
            float dx = load(p.form.scales + element / 32);
            i32 sum = 0, of_codes = 0;
            if (W::OFFSET != 0 || W::HAS_MIN) of_codes = load(p.form.sums + element / 32);
            UNROLL for (u32 i = 0; i < 8; i++) sum = dot4(q[i], x[i], sum);
            T terms;
            terms.x = float_(sum - W::OFFSET * of_codes);
            terms.y = mul_(d, dx);
            if constexpr (W::HAS_MIN) {
                terms.z = m;
                terms.w = mul_(dx, float_(of_codes));
            }
            to[n][lane] = terms;
        }
    }

    DEVICE void block_256(const ProductParams &p, const u8 *panel, u32 b, u32 half, u32 lane, u32 pass,
                          const u32 (&rows)[N], T (*to)[16]) {
        const u8 *meta = panel + b * W::META;
        float d = W::scale(meta, lane), m = W::HAS_MIN ? W::minimum(meta, lane) : 0.0f;
        i32 sums[N], minimums[N];
        UNROLL for (u32 n = 0; n < N; n++) sums[n] = minimums[n] = 0;
        UNROLL_IF_SMALL for (u32 i = 0; i < 4; i++) {
            u32 group = half * 4 + i, q[8], x[8];
            i32 scales[2], mins[2];
            UNROLL for (u32 k = 0; k < 4; k++) {
                W::quads(panel + p.meta_bytes + (b * 8 + group) * W::GROUP, k, lane, &q[k], &q[k + 4]);
            }
            W::integers(meta, group * 32 / W::SUB, lane, &scales[0], &mins[0]);
            if (W::SUB == 16) W::integers(meta, group * 2 + 1, lane, &scales[1], &mins[1]);
            UNROLL for (u32 n = 0; n < N; n++) {
                u64 element = form_row(p, pass, rows[n]) * p.n_cols + b * 256 + group * 32;
                inputs(p, element, x);
                i32 low = 0, high = 0, of_low = 0, of_high = 0;
                if (W::OFFSET != 0 || W::HAS_MIN) {
                    of_low = load(p.form.sums + element / 16);
                    of_high = load(p.form.sums + element / 16 + 1);
                }
                UNROLL for (u32 k = 0; k < 4; k++) {
                    low = dot4(q[k], x[k], low);
                    high = dot4(q[k + 4], x[k + 4], high);
                }
                low -= W::OFFSET * of_low;
                high -= W::OFFSET * of_high;
                if (W::SUB == 16) {
                    sums[n] += scales[0] * low + scales[1] * high;
                    if (W::HAS_MIN) minimums[n] += mins[0] * of_low + mins[1] * of_high;
                } else {
                    sums[n] += scales[0] * (low + high);
                    if (W::HAS_MIN) minimums[n] += mins[0] * (of_low + of_high);
                }
            }
        }
        UNROLL for (u32 n = 0; n < N; n++) {
            i32 sum = sums[n] + shuffle_xor(sums[n], 16);
            i32 minimum = W::HAS_MIN ? minimums[n] + shuffle_xor(minimums[n], 16) : 0;
            if (half != 0) continue;
            float dx = load(p.form.scales + form_row(p, pass, rows[n]) * (p.n_cols / 256) + b);
            T terms;
            terms.x = float_(sum);
            terms.y = mul_(d, dx);
            if constexpr (W::HAS_MIN) {
                terms.z = float_(-minimum);
                terms.w = mul_(m, dx);
            }
            to[n][lane] = terms;
        }
    }
};

// Adds up the products of stretches of columns: a thread has the chains of a matrix row with rows `t / 16` and every 16th
// after it of N rows of the batch.
template <class W, u32 N> struct FloatChains {
    static constexpr u32 STRETCH = 128;
    static constexpr u32 CHAINS = N <= 16 ? 1 : N / 16;
    static constexpr u32 BUFFERS = N <= 8 ? 2 : 1;

    // `row_of(n)`: the row of the input for row n of the N.
    template <class RowOf>
    DEVICE void run(const ProductParams &p, const u8 *weights, RowOf row_of, u32 n_there, float (&y)[CHAINS]) {
        SHARED float w[BUFFERS][STRETCH][16];
        SHARED float x[BUFFERS][N][STRETCH];
        const u8 *panel = weights + block_x() * p.panel_bytes + p.meta_bytes;
        u32 t = thread(), turn = 0;
        UNROLL for (u32 i = 0; i < CHAINS; i++) y[i] = 0.0f;
        for (u32 first = 0; first < p.n_cols; first += STRETCH) {
            u32 buffer = turn % BUFFERS, count = least(STRETCH, p.n_cols - first);
            turn++;
            if (BUFFERS == 1) barrier();
            for (u32 i = t; i < count * 16; i += 256) {
                w[buffer][i / 16][i % 16] = W::value(panel + ((u64)first * 16 + i) * W::BYTES);
            }
            for (u32 i = t; i < n_there * STRETCH; i += 256) {
                u32 n = i / STRETCH, k = i % STRETCH;
                if (k < count) x[buffer][n][k] = load(p.values + (u64)row_of(n) * p.n_cols + first + k);
            }
            barrier();
            if (t / 16 < n_there) {
                UNROLL_4 for (u32 k = 0; k < count; k++) {
                    float weight = w[buffer][k][t % 16];
                    UNROLL for (u32 i = 0; i < CHAINS; i++) {
                        if (t / 16 + i * 16 < n_there) y[i] = fma_(weight, x[buffer][t / 16 + i * 16][k], y[i]);
                    }
                }
            }
        }
    }
};

template <class W, u32 N> struct Few<W, N, true> {
    DEVICE void run(const ProductParams &p, const u8 *weights, const u32 (&rows)[N], u32 n_there, u32 to) {
        float y[1];
        FloatChains<W, N>::run(p, weights, [&](u32 n) { return rows[0] + n; }, n_there, y);
        u32 n = thread() / 16, out = block_x() * 16 + thread() % 16;
        if (n < n_there && out < p.n_out) write(p, (u64)to + n, out, y[0]);
    }
};

// The rows of a batch of N at most, or those of both planes.
template <u32 N> DEVICE void product(const ProductParams &p) {
    u32 rows[N], n_rows = p.planes * p.n_rows <= N ? p.planes * p.n_rows : p.n_rows;
    UNROLL for (u32 n = 0; n < N; n++) rows[n] = least(n, n_rows - 1);
    Few<W, N>::run(p, p.weights, rows, p.n_rows, 0);
}

KERNEL(256, product_1, ProductParams) { product<1>(p); }
KERNEL(256, product_2, ProductParams) { product<2>(p); }
KERNEL(256, product_4, ProductParams) { product<4>(p); }
KERNEL(256, product_8, ProductParams) { product<8>(p); }

// A product for each route.
KERNEL(256, product_experts, ExpertParams) {
    // In one plane, as always with experts.
    u32 route = block_y(), rows[1] = {route / p.routes_per_row};
    Few<W, 1>::run(p.product, p.product.weights + p.routes[route].expert * p.expert_bytes, rows, 1, route);
}

#define TILE 64

// Up to 64 rows of the batch. Four warps have a panel each; a float panel has all eight warps.
template <class W, bool IS_FLOAT = W::IS_FLOAT> struct Tile {
    // The columns that are in shared memory at a time, and the words of a row, some more so that rows are in other banks.
    static constexpr u32 STRETCH = W::BLOCK == 256 ? 256 : 128;
    static constexpr u32 WORDS = STRETCH / 4;
    static constexpr u32 PITCH = WORDS + 4;
    static constexpr bool IS_256 = W::BLOCK == 256;
    static constexpr u32 N_SCALES = STRETCH / W::BLOCK;
    static constexpr bool HAS_SUMS = W::OFFSET != 0 || W::HAS_MIN;
    static constexpr u32 N_SUMS = !HAS_SUMS ? 1 : IS_256 ? STRETCH / 16 : STRETCH / 32;

    struct Inputs {
        u32 codes[TILE][PITCH];
        float scales[N_SCALES][TILE];
        i32 sums[N_SUMS][TILE];
    };

    // Fetches columns `first ..` of all rows. Beyond the end of a row, nothing is read.
    DEVICE void fetch(const ProductParams &p, u32 plane, u32 first, const Place *places, Inputs &to) {
        u32 n_words = least(WORDS, (p.n_cols - first) / 4);
        for (u32 i = thread(); i < TILE * WORDS / 4; i += 128) {
            u32 row = i / (WORDS / 4), word = i % (WORDS / 4) * 4;
            if (word >= n_words) continue;
            u64 element = ((u64)plane * p.n_rows + places[row].from) * p.n_cols + first;
            uint4 four = load((const uint4 *)(p.form.codes + element / 4 + word));
            u32 *codes = &to.codes[row][word];
            codes[0] = four.x, codes[1] = four.y, codes[2] = four.z, codes[3] = four.w;
        }
        for (u32 i = thread(); i < TILE * N_SCALES; i += 128) {
            u32 row = i % TILE, b = i / TILE;
            u64 of_row = ((u64)plane * p.n_rows + places[row].from) * (p.n_cols / W::BLOCK);
            if (first / W::BLOCK + b < p.n_cols / W::BLOCK) {
                to.scales[b][row] = load(p.form.scales + of_row + first / W::BLOCK + b);
            }
        }
        if (!HAS_SUMS) return;
        const u32 summed = IS_256 ? 16 : 32;
        for (u32 i = thread(); i < TILE * N_SUMS; i += 128) {
            u32 row = i % TILE, s = i / TILE;
            u64 of_row = ((u64)plane * p.n_rows + places[row].from) * (p.n_cols / summed);
            if (first / summed + s < p.n_cols / summed) {
                to.sums[s][row] = load(p.form.sums + of_row + first / summed + s);
            }
        }
    }

    // `places`: TILE of them, of which `n_there` count.
    DEVICE void run(const ProductParams &p, const u8 *weights, const Place *places, u32 n_there) {
        SHARED Inputs inputs;
        u32 t = thread(), row = t % 32 / 4, quad = t % 4, n_panels = (p.n_out + 15) / 16;
        u32 panel_at = block_x() * 4 + t / 32, n_eights = (n_there + 7) / 8;
        const u8 *panel = weights + least(panel_at, n_panels - 1) * p.panel_bytes;
        // Of the eighth rows of the batch: row and row + 8 of the panel, with columns 2 * quad and the next.
        float y[8][4];
        for (u32 plane = 0; plane < p.planes; plane++) {
            float z[8][4];
            UNROLL for (u32 e = 0; e < 8; e++) z[e][0] = z[e][1] = z[e][2] = z[e][3] = 0.0f;
            for (u32 first = 0; first < p.n_cols; first += STRETCH) {
                barrier();
                fetch(p, plane, first, places, inputs);
                barrier();
                if constexpr (IS_256) {
                    block_256(p, panel, first / 256, row, quad, n_eights, inputs, z);
                } else {
                    u32 n_blocks = least(STRETCH, p.n_cols - first) / 32;
                    for (u32 b = 0; b < n_blocks; b++) {
                        block_32(p, panel, first / 32 + b, b, row, quad, n_eights, inputs, z);
                    }
                }
            }
            UNROLL for (u32 e = 0; e < 8; e++) {
                UNROLL for (u32 k = 0; k < 4; k++) y[e][k] = plane == 0 ? z[e][k] : add_(y[e][k], z[e][k]);
            }
        }
        if (panel_at >= n_panels) return;
        UNROLL for (u32 e = 0; e < 8; e++) {
            UNROLL for (u32 k = 0; k < 4; k++) {
                u32 n = e * 8 + quad * 2 + k % 2, out = panel_at * 16 + row + k / 2 * 8;
                if (n < n_there && out < p.n_out) write(p, places[n].to, out, y[e][k]);
            }
        }
    }

    // Both panel rows, of columns 4 * quad .. and 16 + 4 * quad .. of a group of 32.
    DEVICE void fragment(const ProductParams &p, const u8 *panel, u32 group, u32 row, u32 quad, u32 *a) {
        const u8 *codes = panel + p.meta_bytes + group * W::GROUP;
        W::quads(codes, quad, row, &a[0], &a[2]);
        W::quads(codes, quad, row + 8, &a[1], &a[3]);
    }

    DEVICE void block_32(const ProductParams &p, const u8 *panel, u32 b, u32 b_here, u32 row, u32 quad, u32 n_eights,
                         const Inputs &in, float (&z)[8][4]) {
        const u8 *meta = panel + b * W::META;
        u32 a[4];
        fragment(p, panel, b, row, quad, a);
        float d[2] = {W::scale(meta, row), W::scale(meta, row + 8)}, m[2] = {0.0f, 0.0f};
        if (W::HAS_MIN) {
            m[0] = W::minimum(meta, row);
            m[1] = W::minimum(meta, row + 8);
        }
        UNROLL for (u32 e = 0; e < 8; e++) {
            if (e >= n_eights) continue;
            const u32 *x = &in.codes[e * 8 + row][b_here * 8 + quad];
            u32 column[2] = {x[0], x[4]}, n = e * 8 + quad * 2;
            // Sums begin at the bits of a float whose last bit counts ones: they end as bits of that float plus the sum.
            i32 c[4] = {(i32)ROUND_BITS, (i32)ROUND_BITS, (i32)ROUND_BITS, (i32)ROUND_BITS};
            if (W::OFFSET != 0) {
                c[0] = c[2] -= W::OFFSET * in.sums[b_here][n];
                c[1] = c[3] -= W::OFFSET * in.sums[b_here][n + 1];
            }
            mma_32(c, a, column);
            UNROLL for (u32 k = 0; k < 4; k++) {
                float dx = in.scales[b_here][n + k % 2];
                z[e][k] = fma_(sub_(of_bits(c[k]), ROUND), mul_(d[k / 2], dx), z[e][k]);
                if (W::HAS_MIN) {
                    z[e][k] = fma_(m[k / 2], mul_(dx, float_(in.sums[b_here][n + k % 2])), z[e][k]);
                }
            }
        }
    }

    DEVICE void block_256(const ProductParams &p, const u8 *panel, u32 b, u32 row, u32 quad, u32 n_eights,
                          const Inputs &in, float (&z)[8][4]) {
        const u8 *meta = panel + b * W::META;
        i32 sums[8][4], minimums[8][4];
        UNROLL for (u32 e = 0; e < 8; e++) {
            UNROLL for (u32 k = 0; k < 4; k++) sums[e][k] = minimums[e][k] = 0;
        }
        for (u32 group = 0; group < 8; group++) {
            u32 a[4];
            fragment(p, panel, b * 8 + group, row, quad, a);
            // Of sub-blocks of 16 there are two.
            const u32 n_subs = 32 / W::SUB;
            i32 scales[2][2], mins[2][2];
            UNROLL for (u32 s = 0; s < n_subs; s++) {
                UNROLL for (u32 r = 0; r < 2; r++) {
                    W::integers(meta, group * n_subs + s, row + r * 8, &scales[s][r], &mins[s][r]);
                }
            }
            UNROLL for (u32 e = 0; e < 8; e++) {
                if (e >= n_eights) continue;
                const u32 *x = &in.codes[e * 8 + row][group * 8 + quad];
                u32 column[2] = {x[0], x[4]}, n = e * 8 + quad * 2;
                UNROLL for (u32 s = 0; s < n_subs; s++) {
                    i32 of_codes[2] = {0, 0}, c[4] = {0, 0, 0, 0};
                    if (HAS_SUMS) {
                        UNROLL for (u32 k = 0; k < 2; k++) {
                            of_codes[k] = in.sums[group * 2 + s][n + k];
                            if (n_subs == 1) of_codes[k] += in.sums[group * 2 + 1][n + k];
                        }
                        c[0] = c[2] = -W::OFFSET * of_codes[0];
                        c[1] = c[3] = -W::OFFSET * of_codes[1];
                    }
                    if (n_subs == 1) {
                        mma_32(c, a, column);
                    } else {
                        mma_16(c, a[2 * s], a[2 * s + 1], column[s]);
                    }
                    UNROLL for (u32 k = 0; k < 4; k++) {
                        sums[e][k] += W::HAS_SCALES ? scales[s][k / 2] * c[k] : c[k];
                        if (W::HAS_MIN) minimums[e][k] += mins[s][k / 2] * of_codes[k % 2];
                    }
                }
            }
        }
        float d[2] = {W::scale(meta, row), W::scale(meta, row + 8)}, m[2] = {0.0f, 0.0f};
        if (W::HAS_MIN) {
            m[0] = W::minimum(meta, row);
            m[1] = W::minimum(meta, row + 8);
        }
        UNROLL for (u32 e = 0; e < 8; e++) {
            if (e >= n_eights) continue;
            UNROLL for (u32 k = 0; k < 4; k++) {
                float dx = in.scales[0][e * 8 + quad * 2 + k % 2];
                z[e][k] = fma_(float_(sums[e][k]), mul_(d[k / 2], dx), z[e][k]);
                if (W::HAS_MIN) z[e][k] = fma_(float_(-minimums[e][k]), mul_(m[k / 2], dx), z[e][k]);
            }
        }
    }
};

template <class W> struct Tile<W, true> {
    DEVICE void run(const ProductParams &p, const u8 *weights, const Place *places, u32 n_there) {
        typedef FloatChains<W, TILE> Chains;
        float y[Chains::CHAINS];
        Chains::run(p, weights, [&](u32 n) { return places[n].from; }, n_there, y);
        u32 out = block_x() * 16 + thread() % 16;
        UNROLL for (u32 i = 0; i < Chains::CHAINS; i++) {
            u32 n = thread() / 16 + i * 16;
            if (n < n_there && out < p.n_out) write(p, places[n].to, out, y[i]);
        }
    }
};

#define TILE_THREADS (W::IS_FLOAT ? 256 : 128)

KERNEL(TILE_THREADS, product_tile, ProductParams) {
    SHARED Place places[TILE];
    u32 first = block_y() * TILE;
    if (thread() < TILE) {
        u32 row = least(first + thread(), p.n_rows - 1);
        places[thread()] = {row, row};
    }
    barrier();
    Tile<W>::run(p, p.weights, places, least(TILE, p.n_rows - first));
}

KERNEL(TILE_THREADS, product_experts_tile, ExpertParams) {
    SHARED Place places[TILE];
    const u32 *tile = p.tiles + block_y() * 3;
    u32 expert = tile[0], first = tile[1], end = tile[2];
    if (first == end) return;
    if (thread() < TILE) {
        u32 route = p.order[least(first + thread(), end - 1)];
        places[thread()] = {route / p.routes_per_row, route};
    }
    barrier();
    Tile<W>::run(p.product, p.product.weights + expert * p.expert_bytes, places, end - first);
}
