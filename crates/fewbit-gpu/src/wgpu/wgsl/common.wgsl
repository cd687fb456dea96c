// What every kernel knows: the shape of its operation, and the step.

struct Shape {
    // Numbers of a row, of a part of a row (a head), rows for each token, and what else an operation needs.
    width: u32, part: u32, rows_per_token: u32, a: u32,
    b: u32, c: u32, d: u32, e: u32,
    f: f32, g: f32, h: f32, i: f32,
}

struct Step {
    n_tokens: u32, row_at: u32, sequence_at: u32, slot_at: u32,
    // Where the angles begin, and how many there are for each position, of global and of local layers.
    global_at: u32, global_n: u32, local_at: u32, local_n: u32,
    temperature_at: u32, infinity: f32, zero: u32, pad: u32,
}

fn sub_(a: f32, b: f32) -> f32 { return add_(a, -b); }

// Plain comparisons, as the CPU's: what is no number stays so.
fn at_most(x: f32, limit: f32) -> f32 { return select(x, limit, x > limit); }
fn at_least(x: f32, limit: f32) -> f32 { return select(x, limit, x < limit); }

fn taylor(i: u32) -> f32 {
    switch (i) {
        case 0u: { return TAYLOR_6; }
        case 1u: { return TAYLOR_5; }
        case 2u: { return TAYLOR_4; }
        case 3u: { return TAYLOR_3; }
        case 4u: { return 0.5; }
        default: { return 1.0; }
    }
}

// e^x; see `fewbit_kernels::math`.
fn exp_(x: f32) -> f32 {
    let shifted = fma_(x, LOG2_E, 12582912.0);
    let bits = bitcast<u32>(shifted);
    let n = f32(i32(bits - 0x4b400000u));
    var r = x;
    for (var i = 0u; i < times(2u); i++) { r = fma_(n, select(-LN2_LO, -LN2_HI, i == 0u), r); }
    var p = TAYLOR_7;
    for (var i = 0u; i < times(7u); i++) { p = fma_(p, r, taylor(i)); }
    let y = mul_(p, bitcast<f32>((bits - 0x4b400000u + 127u) << 23u));
    if (x < -87.0) { return 0.0; }
    if (x > 88.0) { return step.infinity; }
    return y;
}

fn sigmoid_(x: f32) -> f32 { return div_(1.0, add_(1.0, exp_(-x))); }

// The signed byte of a number, by the inverse of the scale of its block.
fn code_(x: f32, inverse: f32) -> i32 { return clamp(i32(round(mul_(x, inverse))), -127, 127); }

fn tanh_term(i: u32) -> f32 {
    switch (i) {
        case 0u: { return TANH_9; }
        case 1u: { return TANH_7; }
        case 2u: { return TANH_5; }
        default: { return TANH_3; }
    }
}

fn tanh_(x: f32) -> f32 {
    if (abs(x) < 0.25) {
        let s = mul_(x, x);
        var p = TANH_11;
        for (var i = 0u; i < times(4u); i++) { p = fma_(p, s, tanh_term(i)); }
        return fma_(mul_(p, s), x, x);
    }
    let far = sub_(1.0, div_(2.0, add_(exp_(mul_(2.0, abs(x))), 1.0)));
    return select(far, -far, x < 0.0);
}

// Rounded to nearest even, in integers: pack2x16float leaves that open, and drivers cut off.
fn to_half(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let a = bits & 0x7fffffffu;
    if (a > 0x7f800000u) { return sign | 0x7e00u; }
    if (a >= 0x477ff000u) { return sign | 0x7c00u; }
    if (a >= 0x38800000u) { return sign | ((a - 0x38000000u + 0xfffu + ((a >> 13u) & 1u)) >> 13u); }
    if (a <= 0x33000000u) { return sign; }
    let m = (a & 0x7fffffu) | 0x800000u;
    let shift = 126u - (a >> 23u);
    let rest = m & ((1u << shift) - 1u);
    let tie = 1u << (shift - 1u);
    var h = m >> shift;
    if (rest > tie || (rest == tie && (h & 1u) == 1u)) { h += 1u; }
    return sign | h;
}
