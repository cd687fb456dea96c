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
    temperature_at: u32, infinity: f32, pad_a: u32, pad_b: u32,
}

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<uniform> step: Step;

fn sub_(a: f32, b: f32) -> f32 { return add_(a, -b); }

// e^x; see `fewbit_kernels::math`.
fn exp_(x: f32) -> f32 {
    let shifted = fma_(x, LOG2_E, 12582912.0);
    let bits = bitcast<u32>(shifted);
    let n = float_(i32(bits - 0x4b400000u));
    var r = fma_(n, -LN2_HI, x);
    r = fma_(n, -LN2_LO, r);
    var p = fma_(r, TAYLOR_7, TAYLOR_6);
    p = fma_(p, r, TAYLOR_5);
    p = fma_(p, r, TAYLOR_4);
    p = fma_(p, r, TAYLOR_3);
    p = fma_(p, r, 0.5);
    p = fma_(p, r, 1.0);
    p = fma_(p, r, 1.0);
    let y = mul_(p, bitcast<f32>((bits - 0x4b400000u + 127u) << 23u));
    if (x < -87.0) { return 0.0; }
    if (x > 88.0) { return step.infinity; }
    return y;
}

fn tanh_(x: f32) -> f32 {
    if (abs(x) < 0.25) {
        let s = mul_(x, x);
        var p = fma_(s, TANH_11, TANH_9);
        p = fma_(p, s, TANH_7);
        p = fma_(p, s, TANH_5);
        p = fma_(p, s, TANH_3);
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
