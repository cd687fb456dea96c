// The cache and attention over it, as `fewbit_kernels::attention` defines them, for caches of one type (the macro KV);
// pages have the layout of `fewbit_kernels::kv`.
#include "quantize.h"

// Positions of a page.
#define PAGE 256

#define MINUS_INFINITY of_bits(0xff800000u)

// How elements of f16 or f32 lie in a page.
template <class T> struct Plain {
    static constexpr bool IS_Q8 = false;

    DEVICE float value_of(u16 stored) { return of_half(stored); }
    DEVICE float value_of(float stored) { return stored; }
    DEVICE void store(u16 *to, float x) { *to = to_half(x); }
    DEVICE void store(float *to, float x) { *to = x; }

    // Where element d of the key or value at position j of a head is.
    DEVICE u32 key_at(u32 head, u32 j, u32 d, u32 head_dim) {
        return (head * PAGE + j) / 16 * 16 * head_dim + d * 16 + j % 16;
    }
    DEVICE u32 value_at(u32 head, u32 j, u32 d, u32 head_dim) {
        return (head * PAGE + j) * ((head_dim + 15) / 16 * 16) + d;
    }

    DEVICE void append(const AppendParams &p, u8 *page, u32 head, u32 j, u32 d, float k, float v) {
        if (d >= p.head_dim) return;
        store((T *)page + key_at(head, j, d, p.head_dim), k);
        store((T *)(page + p.key_bytes) + value_at(head, j, d, p.head_dim), v);
    }
};

// Blocks of 32 elements: a byte each, and a scale in half precision.
struct Blocks {
    static constexpr bool IS_Q8 = true;

    // The keys of 16 positions of a head: scales [head_dim / 32][16], then codes [head_dim / 4][16][4].
    DEVICE u32 keys_at(u32 head, u32 j, u32 head_dim) {
        return (head * (PAGE / 16) + j / 16) * (head_dim * 16 + head_dim);
    }
    // The values of a head: codes [PAGE][head_dim], then scales [head_dim / 32][PAGE].
    DEVICE u32 values_at(u32 head, u32 head_dim) { return head * (PAGE * head_dim + head_dim * (PAGE / 16)); }

    // A warp has a block.
    DEVICE void append(const AppendParams &p, u8 *page, u32 head, u32 j, u32 d, float k, float v) {
        u32 n = p.head_dim;
        float dk, dv;
        u8 code_k = quantize(k, &dk), code_v = quantize(v, &dv);
        u8 *keys = page + keys_at(head, j, n);
        keys[n + (d / 4 * 16 + j % 16) * 4 + d % 4] = code_k;
        u8 *values = page + p.key_bytes + values_at(head, n);
        values[j * n + d] = code_v;
        if (d % 32 != 0) return;
        ((u16 *)keys)[d / 32 * 16 + j % 16] = to_half(dk);
        ((u16 *)(values + PAGE * n))[d / 32 * PAGE + j] = to_half(dv);
    }

    // The code of the block's element that this thread of a warp has, and the scale.
    DEVICE u8 quantize(float x, float *d) {
        u32 largest = bits_of(x) & 0x7fffffffu;
        UNROLL for (u32 width = 1; width < 32; width *= 2) largest = most(largest, shuffle_xor(largest, width));
        float inverse;
        *d = scale_of(largest, &inverse);
        return (u8)code_of(x, inverse);
    }
};

struct CacheTypes {
    typedef Plain<u16> f16;
    typedef Plain<float> f32;
    typedef Blocks q8_0;
};

// The type of this module's cache.
typedef CacheTypes::KV Kv;

KERNEL(256, append, AppendParams) {
    u32 chunks = (p.head_dim + 31) / 32, item = block_y() * 8 + thread() / 32;
    u32 head = item / chunks, d = item % chunks * 32 + thread() % 32;
    if (head >= p.n_kv_heads) return;
    Row row = p.rows[block_x()];
    u32 slot = p.slots[row.slots_at + row.position / PAGE - row.first_page];
    u64 at = ((u64)block_x() * p.n_kv_heads + head) * p.head_dim + d;
    bool is_there = d < p.head_dim;
    float k = is_there ? p.k[at] : 0.0f, v = is_there ? p.v[at] : 0.0f;
    Kv::append(p, p.pool + slot * p.page_bytes, head, row.position % PAGE, d, k, v);
}

// What happens with the output of a page.
enum Merging { SKIP, FIRST, MERGE };

// The first position that is seen from a position.
DEVICE u32 lowest(const AttendParams &p, u32 position) {
    if (p.window == 0) return 0;
    if (p.is_chunked) return position / p.window * p.window;
    return position + 1 > p.window ? position + 1 - p.window : 0;
}

// What a head's sums of values are multiplied by. A sink takes its part of the sum of weights.
DEVICE float last_factor(const AttendParams &p, u32 head, float largest, float sum) {
    if (p.sinks == nullptr) return div_(1.0f, sum);
    float sink = p.sinks[head], both = larger(largest, sink);
    float before = exp_(sub_(largest, both));
    return div_(before, add_(mul_(sum, before), exp_(sub_(sink, both))));
}

// Attention of up to M rows of queries (a head of a row of the batch each) that read the same keys. Each of eight warps
// has the sums of a row; each thread has a position of a page, then elements of outputs.
template <class Kv, u32 M> struct AttentionOf {
    // How many elements a thread loads before it uses them: there are few threads to wait for other loads meanwhile.
    static constexpr u32 AT_ONCE = M <= 4 ? 32 : 16;

    struct Shared {
        u32 position[M];
        // The positions of the page that a row sees.
        u32 start[M], end[M];
        // How far what was summed up before, and what this page sums up, lie below the largest.
        float before[M], now[M];
        float largest[M], sum[M];
        Merging merging[M];
    };

    DEVICE void run(const AttendParams &p) {
        SHARED Shared shared;
        u32 group = p.n_heads / p.n_kv_heads, chunks = (group + p.heads - 1) / p.heads;
        u32 kv_head = block_y() / chunks, first_head = block_y() % chunks * p.heads;
        u32 n_heads = least(p.heads, group - first_head);
        first_head += kv_head * group;
        u32 row = block_x() * p.tokens, end = least(row + p.tokens, p.n_rows);
        // Rows of one sequence at a time.
        while (row < end) {
            u32 next = row + 1;
            while (next < end && p.rows[next].sequence == p.rows[row].sequence) next++;
            sequence(p, shared, kv_head, first_head, n_heads, row, next);
            row = next;
        }
    }

    DEVICE void sequence(const AttendParams &p, Shared &shared, u32 kv_head, u32 first_head, u32 n_heads, u32 row,
                         u32 end) {
        u32 t = thread(), n = p.head_dim, padded = (n + 3) / 4 * 4;
        float *query = (float *)dynamic_shared(), *weights = query + M * padded, *merged = weights + M * PAGE;
        // One page, whose output is merged with those of others afterwards.
        bool is_one_page = p.n_pages > 0;
        barrier();
        if (t < M) {
            bool is_there = row + t / p.heads < end && t % p.heads < n_heads;
            shared.position[t] = is_there ? p.rows[row + t / p.heads].position : ~0u;
        }
        barrier();
        load_queries(p, shared, first_head, row, query);
        Row first = p.rows[row];
        u32 page = lowest(p, first.position) / PAGE, last = p.rows[end - 1].position / PAGE;
        if (is_one_page) {
            page += block_z();
            if (page > last) return;
            last = page;
        }
        // Of the row that this thread's warp has.
        float largest = MINUS_INFINITY, sum = 0.0f;
        bool is_first = true;
        for (; page <= last; page++) {
            u32 slot = load(p.slots + first.slots_at + page - first.first_page);
            const u8 *keys = p.pool + slot * p.page_bytes;
            if (t < M) ranges(p, shared, page);
            barrier();
            scores(p, shared, kv_head, keys, query, weights);
            barrier();
            if (t / 32 < M) softmax(shared, weights + t / 32 * PAGE, &largest, &sum, &is_first);
            barrier();
            values(p, shared, kv_head, keys + p.key_bytes, weights, merged, padded);
            barrier();
        }
        for (u32 m = 0; m < M; m++) {
            if (shared.position[m] == ~0u) continue;
            u32 head = first_head + m % p.heads;
            u64 at = (u64)(row + m / p.heads) * p.n_heads + head;
            float *to = p.to + at * n;
            if (is_one_page) {
                to = p.parts + (at * p.n_pages + block_z()) * (n + 2);
                if (t < 2) to[n + t] = t == 0 ? shared.largest[m] : shared.sum[m];
            }
            float factor = is_one_page ? 1.0f : last_factor(p, head, shared.largest[m], shared.sum[m]);
            for (u32 d = t; d < n; d += 256) {
                to[d] = is_one_page ? merged[m * padded + d] : mul_(merged[m * padded + d], factor);
            }
        }
    }

    // Queries as products with keys read them: [head_dim][M] floats; with Q8_0, [head_dim / 4][M] words of codes, then
    // [head_dim / 32][M] scales.
    DEVICE void load_queries(const AttendParams &p, const Shared &shared, u32 first_head, u32 row, float *query) {
        u32 n = p.head_dim;
        if constexpr (Kv::IS_Q8) {
            u8 *codes = (u8 *)query;
            float *scales = query + n / 4 * M;
            for (u32 i = thread() / 32; i < M * (n / 32); i += 8) {
                u32 m = i % M, d = i / M * 32 + thread() % 32;
                float scale, x = scaled(p, shared, first_head, row, m, d);
                codes[(d / 4 * M + m) * 4 + d % 4] = Kv::quantize(x, &scale);
                if (d % 32 == 0) scales[d / 32 * M + m] = scale;
            }
        } else {
            for (u32 i = thread(); i < M * n; i += 256) {
                query[i] = scaled(p, shared, first_head, row, i % M, i / M);
            }
        }
    }

    DEVICE float scaled(const AttendParams &p, const Shared &shared, u32 first_head, u32 row, u32 m, u32 d) {
        if (shared.position[m] == ~0u) return 0.0f;
        u64 at = (u64)(row + m / p.heads) * p.n_heads + first_head + m % p.heads;
        return mul_(load(p.q + at * p.head_dim + d), p.scale);
    }

    // What row `t` sees of a page.
    DEVICE void ranges(const AttendParams &p, Shared &shared, u32 page) {
        u32 m = thread(), position = shared.position[m];
        shared.start[m] = shared.end[m] = 0;
        if (position == ~0u) return;
        u32 low = lowest(p, position), first = page * PAGE;
        shared.start[m] = low > first ? least(low - first, PAGE) : 0;
        shared.end[m] = position + 1 > first ? least(position + 1 - first, PAGE) : 0;
    }

    // A thread for each position.
    DEVICE void scores(const AttendParams &p, const Shared &shared, u32 kv_head, const u8 *keys, const float *query,
                       float *weights) {
        u32 j = thread(), n = p.head_dim;
        bool is_seen = false;
        UNROLL for (u32 m = 0; m < M; m++) is_seen |= shared.start[m] <= j && j < shared.end[m];
        float s[M];
        UNROLL for (u32 m = 0; m < M; m++) s[m] = 0.0f;
        if (is_seen) {
            if constexpr (Kv::IS_Q8) {
                const u8 *of_sixteen = keys + Kv::keys_at(kv_head, j, n);
                const u32 *codes = (const u32 *)(of_sixteen + n) + j % 16, *queries = (const u32 *)query;
                const float *scales = query + n / 4 * M;
                for (u32 b = 0; b < n / 32; b++) {
                    float d = of_half(load((const u16 *)of_sixteen + b * 16 + j % 16));
                    i32 sums[M];
                    UNROLL for (u32 m = 0; m < M; m++) sums[m] = 0;
                    UNROLL for (u32 q = 0; q < 8; q++) {
                        u32 k = load(codes + (b * 8 + q) * 16);
                        UNROLL for (u32 m = 0; m < M; m++) sums[m] = dot4(k, queries[(b * 8 + q) * M + m], sums[m]);
                    }
                    UNROLL for (u32 m = 0; m < M; m++) {
                        s[m] = fma_(float_(sums[m]), mul_(d, scales[b * M + m]), s[m]);
                    }
                }
            } else {
                const auto *key = typed(keys, (Kv *)nullptr) + Kv::key_at(kv_head, j, 0, n);
                u32 d = 0;
                for (; d + AT_ONCE <= n; d += AT_ONCE) {
                    float k[AT_ONCE];
                    UNROLL for (u32 i = 0; i < AT_ONCE; i++) k[i] = Kv::value_of(load(key + (d + i) * 16));
                    UNROLL for (u32 i = 0; i < AT_ONCE; i++) {
                        UNROLL for (u32 m = 0; m < M; m++) s[m] = fma_(query[(d + i) * M + m], k[i], s[m]);
                    }
                }
                for (; d < n; d++) {
                    float k = Kv::value_of(load(key + d * 16));
                    UNROLL for (u32 m = 0; m < M; m++) s[m] = fma_(query[d * M + m], k, s[m]);
                }
            }
        }
        UNROLL for (u32 m = 0; m < M; m++) {
            bool is_there = shared.start[m] <= j && j < shared.end[m];
            if (is_there && p.cap > 0.0f) s[m] = mul_(p.cap, tanh_(mul_(s[m], p.inverse_cap)));
            weights[m * PAGE + j] = is_there ? s[m] : MINUS_INFINITY;
        }
    }

    template <class T> DEVICE const T *typed(const u8 *at, Plain<T> *) { return (const T *)at; }

    // A warp for each row: scores become weights, and the row's sums take in the page.
    DEVICE void softmax(Shared &shared, float *weights, float *largest, float *sum, bool *is_first) {
        u32 m = thread() / 32, lane = thread() % 32, start = shared.start[m], end = shared.end[m];
        if (start >= end) {
            if (lane == 0) shared.merging[m] = SKIP;
            return;
        }
        float x[8], top = MINUS_INFINITY, total = 0.0f;
        UNROLL for (u32 i = 0; i < 8; i++) {
            x[i] = weights[lane + i * 32];
            top = larger(top, x[i]);
        }
        UNROLL for (u32 width = 16; width > 0; width /= 2) top = larger(top, shuffle_xor(top, width));
        UNROLL for (u32 i = 0; i < 8; i++) {
            u32 j = lane + i * 32;
            x[i] = start <= j && j < end ? exp_(sub_(x[i], top)) : 0.0f;
            weights[j] = x[i];
            // 16 strided chains; those of the upper half of a warp are not used.
            total = add_(total, x[i]);
            total = add_(total, shuffle_xor(x[i], 16));
        }
        UNROLL for (u32 width = 8; width > 0; width /= 2) total = add_(total, shuffle_xor(total, width));
        float before = 0.0f, now = 0.0f;
        if (*is_first) {
            *largest = top;
            *sum = total;
        } else {
            float both = larger(*largest, top);
            before = exp_(sub_(*largest, both));
            now = exp_(sub_(top, both));
            *sum = fma_(total, now, mul_(*sum, before));
            *largest = both;
        }
        if (lane == 0) {
            shared.merging[m] = *is_first ? FIRST : MERGE;
            shared.before[m] = before;
            shared.now[m] = now;
            shared.largest[m] = *largest;
            shared.sum[m] = *sum;
        }
        *is_first = false;
    }

    // A thread for each element of some rows; if heads are small, several threads share the rows.
    DEVICE void values(const AttendParams &p, const Shared &shared, u32 kv_head, const u8 *values, const float *weights,
                       float *merged, u32 padded) {
        u32 n = p.head_dim, width = least((n + 31) / 32 * 32, 256), sharing = 256 / width;
        u32 first_row = thread() / width, start = PAGE, end = 0, all_start = 0, all_end = PAGE;
        if (first_row >= sharing) return;
        UNROLL for (u32 m = 0; m < M; m++) {
            if (shared.start[m] >= shared.end[m]) continue;
            start = least(start, shared.start[m]);
            end = most(end, shared.end[m]);
            all_start = most(all_start, shared.start[m]);
            all_end = least(all_end, shared.end[m]);
        }
        for (u32 d = thread() % width; d < n; d += width) {
            // Rows first_row, first_row + sharing, ...
            float o[M];
            UNROLL for (u32 i = 0; i < M; i++) o[i] = 0.0f;
            all_end = most(all_end, all_start);
            const float *of_rows = weights + first_row * PAGE;
            // Positions that only some rows see, then those that all see, then again some.
            u32 j = start, all = least(all_end, end);
            ONCE for (u32 part = 0; part < 2; part++) {
                u32 some = part == 0 ? least(all_start, end) : end;
                ONCE for (; j < some; j++) {
                    float factor, v = value(values, kv_head, j, d, n, &factor);
                    add<true>(shared, of_rows, first_row, sharing, j, v, factor, o);
                }
                if (part == 1) break;
                ONCE for (; j + AT_ONCE <= all; j += AT_ONCE) {
                    float v[AT_ONCE], factors[AT_ONCE];
                    UNROLL for (u32 i = 0; i < AT_ONCE; i++) v[i] = value(values, kv_head, j + i, d, n, &factors[i]);
                    UNROLL for (u32 i = 0; i < AT_ONCE; i++) {
                        add<false>(shared, of_rows, first_row, sharing, j + i, v[i], factors[i], o);
                    }
                }
                ONCE for (; j < all; j++) {
                    float factor, v = value(values, kv_head, j, d, n, &factor);
                    add<false>(shared, of_rows, first_row, sharing, j, v, factor, o);
                }
            }
            UNROLL for (u32 i = 0; i < M; i++) {
                u32 m = first_row + i * sharing;
                if (m >= M || shared.merging[m] == SKIP) continue;
                float *to = merged + m * padded + d;
                *to = shared.merging[m] == FIRST ? o[i] : fma_(o[i], shared.now[m], mul_(*to, shared.before[m]));
            }
        }
    }

    // Element d of the value at position j, and by what weights are multiplied before they are multiplied with it.
    DEVICE float value(const u8 *values, u32 kv_head, u32 j, u32 d, u32 n, float *factor) {
        if constexpr (Kv::IS_Q8) {
            const u8 *of_head = values + Kv::values_at(kv_head, n);
            *factor = of_half(load((const u16 *)(of_head + PAGE * n) + d / 32 * PAGE + j));
            return float_((i8)load(of_head + j * n + d));
        } else {
            *factor = 1.0f;
            return Kv::value_of(load(typed(values, (Kv *)nullptr) + Kv::value_at(kv_head, j, d, n)));
        }
    }

    // Adds position j to the outputs of rows. If it is checked, it does not touch those of rows that do not see it.
    template <bool IS_CHECKED>
    DEVICE void add(const Shared &shared, const float *weights, u32 first_row, u32 sharing, u32 j, float v, float factor,
                    float (&o)[M]) {
        UNROLL for (u32 i = 0; i < M; i++) {
            u32 m = first_row + i * sharing;
            if (m >= M || (IS_CHECKED && (j < shared.start[m] || j >= shared.end[m]))) continue;
            float weight = weights[i * sharing * PAGE + j];
            if (Kv::IS_Q8) weight = mul_(weight, factor);
            o[i] = fma_(weight, v, o[i]);
        }
    }
};

template <u32 M> using Attention = AttentionOf<Kv, M>;

// The rows of a block: as many as a launch has a kernel for, from `heads * tokens` on.
KERNEL(256, attend_1, AttendParams) { Attention<1>::run(p); }
KERNEL(256, attend_2, AttendParams) { Attention<2>::run(p); }
KERNEL(256, attend_4, AttendParams) { Attention<4>::run(p); }
KERNEL(256, attend_8, AttendParams) { Attention<8>::run(p); }

// Merges the pages of a head of a row, in order.
KERNEL(256, attend_merge, AttendParams) {
    SHARED float largest[256], sums[256], before[256], now[256];
    u32 t = thread(), n = p.head_dim, position = p.rows[block_x()].position;
    u32 n_pages = position / PAGE - lowest(p, position) / PAGE + 1;
    u64 at = (u64)block_x() * p.n_heads + block_y();
    const float *parts = p.parts + at * p.n_pages * (n + 2);
    for (u32 first_d = 0; first_d < n; first_d += 256) {
        u32 d = first_d + t;
        float top = MINUS_INFINITY, sum = 0.0f, o = 0.0f;
        for (u32 first = 0; first < n_pages; first += 256) {
            u32 count = least(256, n_pages - first);
            barrier();
            if (t < count) {
                largest[t] = parts[(u64)(first + t) * (n + 2) + n];
                sums[t] = parts[(u64)(first + t) * (n + 2) + n + 1];
            }
            barrier();
            // Each page's largest of all pages before it; the first page is taken as it is.
            if (t < count) {
                float earlier = top;
                for (u32 i = 0; i < t; i++) earlier = first + i == 0 ? largest[0] : larger(earlier, largest[i]);
                float both = larger(earlier, largest[t]);
                before[t] = exp_(sub_(earlier, both));
                now[t] = exp_(sub_(largest[t], both));
            }
            barrier();
            for (u32 i = 0; i < count; i++) {
                float part = d < n ? parts[(u64)(first + i) * (n + 2) + d] : 0.0f;
                bool is_first = first + i == 0;
                o = is_first ? part : fma_(part, now[i], mul_(o, before[i]));
                sum = is_first ? sums[i] : fma_(sums[i], now[i], mul_(sum, before[i]));
                top = is_first ? largest[i] : larger(top, largest[i]);
            }
        }
        if (d < n) p.to[at * n + d] = mul_(o, last_factor(p, block_y(), top, sum));
    }
}
