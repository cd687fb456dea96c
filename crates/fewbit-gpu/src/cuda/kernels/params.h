// The parameters of all kernels: one struct for each, passed by value. `kernels.rs` has the same structs for the host;
// its test compares their sizes. Pointers come first, so that no padding depends on a compiler.
//
// Rows of numbers are dense: row r of a buffer with n columns begins at element r * n.
#pragma once

// Rows as signed bytes under one scale for each block of 32 or 256 columns. With two planes, the rows of the second plane
// follow those of the first. A null pointer as `codes` means: not this form.
struct Form {
    u32 *codes;     // [n_rows][n_cols / 4] words of four codes
    float *scales;  // [n_rows][n_cols / block]
    i32 *sums;      // [n_rows][n_cols / 32], in blocks of 256 [n_rows][n_cols / 16]: sums of codes
};

// What a kernel must know of the position of a row of the batch.
struct Row {
    u32 position;
    u32 first_page;  // the first page that the sequence still has
    u32 slots_at;    // where in the table of slots that page's slot is; those of later pages follow
    u32 sequence;    // rows of one sequence have the same number, and consecutive positions
};

struct Route {
    u32 expert;
    float weight;
};

// The row of the batch to which an adapter is applied, and its scale.
struct AdaptedRow {
    u32 row;
    float scale;
};

struct NormParams {
    const float *from;    // [n_rows][n_parts][part]
    const float *weight;  // [part]
    float *to;            // as `from`, and may be the same
    Form q32, q256;       // of `to`
    u32 n_rows, n_parts, part, planes;
    float eps;
    u32 has_mean;  // 1 if the mean is subtracted first
};

struct QuantizeParams {
    const float *from;  // [n_rows][n_cols]
    Form to;
    u32 n_rows, n_cols, planes, unused;
};

struct GateParams {
    float *gate;      // [n_rows][n_cols], in place
    const float *up;  // the same
    Form q32, q256;   // of the result, in one plane
    u32 n_rows, n_cols;
};

struct RowsParams {
    float *to;           // [n_rows][n_cols], in place
    const float *other;  // bias: [n_cols]; temper: [n_rows]; add: as `to`
    u32 n_rows, n_cols;
    float a, b;  // add and scale: the factor; softcap: the cap and 1 / cap
};

struct RotateParams {
    float *to;         // [n_rows][n_cols / head_dim][head_dim], in place
    const float *cos;  // [n_rows][half]
    const float *sin;  // the same
    u32 n_rows, n_cols, head_dim, half;
};

struct ProductParams {
    const u8 *weights;    // panels of 16 rows, as `fewbit_kernels` packs them
    const float *values;  // the input of float weights: [n_rows][n_cols]
    Form form;            // the input of quantized weights
    float *to;            // [n_rows][n_out]
    u64 panel_bytes, meta_bytes;
    u32 n_rows, n_cols, n_out, planes, adds, unused;
};

struct ExpertParams {
    ProductParams product;  // `to`: [n_routes][n_out]; `n_rows`: of the input
    const Route *routes;    // [n_routes]
    const u32 *order;       // tiles only: see `GroupParams`
    const u32 *tiles;
    u64 expert_bytes;
    u32 n_routes, routes_per_row;  // how many routes share a row of the input
};

// Groups the routes of a batch by expert, for products in tiles.
struct GroupParams {
    const Route *routes;  // [n_routes]
    u32 *order;           // [n_routes]: routes in order of their experts
    u32 *tiles;           // [n_experts + n_routes / 64][3]: expert, first, end in `order`; first == end where there are no more
    u32 *scratch;         // [2 * n_experts]
    u32 n_routes, n_experts;
};

struct RouteParams {
    float *scores;      // [n_rows][n_experts]; overwritten by probabilities
    const float *bias;  // [n_experts], or null
    float *choices;     // [n_rows][n_experts + n_groups]: what experts are chosen by, sums of groups; or null: scores
    Route *routes;      // [n_rows][n_used]
    u32 n_rows, n_experts, n_used, is_normalized;
    float scale;
    u32 is_sigmoid;
    u32 n_groups, n_groups_used, n_best;  // n_groups: 0 without groups; n_best: experts that a group's sum is of
    u32 unused;
};

// Rows of routes.
struct RoutedParams {
    const float *other;   // bias: [n_experts][n_cols]; weigh: [n_routes / routes_per_row][n_cols]
    const Route *routes;  // [n_routes]
    float *to;            // [n_routes][n_cols]
    u32 n_routes, n_cols, routes_per_row, unused;
};

struct CombineParams {
    const float *outputs;       // [n_rows][n_used][n_cols]
    const Route *routes;        // [n_rows][n_used]
    const float *shared;        // [n_rows][n_cols], or null
    const float *shared_score;  // [n_rows], or null
    float *to;                  // [n_rows][n_cols]
    u32 n_rows, n_cols, n_used;
    u32 weighs;  // 1 if outputs are multiplied by the weights of their routes
};

struct AdaptParams {
    const float *w;          // [n_out][n_in]
    const float *x;          // down: [batch][n_in]; up: [n_rows][n_in]
    const AdaptedRow *rows;  // [n_rows]
    float *to;               // down: [n_rows][n_out]; up: [batch][n_out], added to
    u32 n_rows, n_in, n_out, unused;
};

struct AppendParams {
    const float *k;  // [n_rows][n_kv_heads][head_dim]
    const float *v;
    const Row *rows;   // [n_rows]
    const u32 *slots;  // see `Row`
    u8 *pool;          // the slots of a layer: a page each, first its keys, then its values
    u64 page_bytes, key_bytes;
    u32 n_rows, n_kv_heads, head_dim, unused;
};

struct AttendParams {
    const float *q;  // [n_rows][n_heads][head_dim]
    const Row *rows;
    const u32 *slots;
    const u8 *pool;
    const float *sinks;  // [n_heads], or null
    float *to;     // as `q`
    float *parts;  // of single pages: [n_rows][n_heads][n_pages][head_dim + 2]
    u64 page_bytes, key_bytes;
    u32 n_rows, n_heads, n_kv_heads, head_dim;
    u32 heads, tokens;  // query heads and rows of the batch that a block takes at once: heads * tokens <= 8
    u32 window;         // the most keys that a query sees; 0: all
    u32 n_pages;        // at least the most pages that a row sees, if each has blocks of its own; otherwise 0
    float scale, cap, inverse_cap;  // cap: 0 without one
    u32 is_chunked;     // 1 if the window begins at the last multiple of its length
};

// For measuring the limits of a device.
struct CeilingParams {
    const uint4 *from;
    u32 *to;
    u64 n;
};
