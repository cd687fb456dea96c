// Arithmetic in integers: every operation is rounded once, to nearest even, as IEEE 754 and the CPU have it. WGSL
// leaves open how floats are rounded, contracted and reordered, and integers are exact everywhere. For tests.
//
// A 64-bit integer is a vec2 of its low and high words.

// No uniforms: of these lavapipe makes constants, and compiles a kernel again for every value that it meets.
@group(0) @binding(0) var<storage, read> shape: Shape;
@group(0) @binding(1) var<storage, read> step: Step;

// A number that compilers do not know, so that they leave a loop a loop: a software adapter's takes a second to make
// machine code of one that is unrolled.
fn times(n: u32) -> u32 { return n + step.zero; }

fn shifted_left(v: vec2<u32>, n: u32) -> vec2<u32> {
    if (n == 0u) { return v; }
    if (n >= 32u) { return vec2<u32>(0u, v.x << (n - 32u)); }
    return vec2<u32>(v.x << n, (v.y << n) | (v.x >> (32u - n)));
}

// To the right; the last bit says whether anything was lost.
fn jammed_right(v: vec2<u32>, n: u32) -> vec2<u32> {
    if (n == 0u) { return v; }
    if (n >= 64u) { return vec2<u32>(select(0u, 1u, (v.x | v.y) != 0u), 0u); }
    var lost = 0u;
    var r = vec2<u32>(0u, 0u);
    if (n >= 32u) {
        let k = n - 32u;
        lost = v.x;
        if (k > 0u) { lost |= v.y << (32u - k); }
        r = vec2<u32>(v.y >> k, 0u);
    } else {
        lost = v.x << (32u - n);
        r = vec2<u32>((v.x >> n) | (v.y << (32u - n)), v.y >> n);
    }
    return vec2<u32>(r.x | select(0u, 1u, lost != 0u), r.y);
}

fn sum64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn difference64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

fn less64(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

fn product64(a: u32, b: u32) -> vec2<u32> {
    let ll = (a & 0xffffu) * (b & 0xffffu);
    let lh = (a & 0xffffu) * (b >> 16u);
    let hl = (a >> 16u) * (b & 0xffffu);
    let hh = (a >> 16u) * (b >> 16u);
    let middle = (ll >> 16u) + (lh & 0xffffu) + (hl & 0xffffu);
    return vec2<u32>((ll & 0xffffu) | (middle << 16u), hh + (lh >> 16u) + (hl >> 16u) + (middle >> 16u));
}

struct Parts { sign: u32, exponent: i32, mantissa: u32 }

// value = mantissa * 2^(exponent - 150), the mantissa of 24 bits; 0 has the mantissa 0.
fn parts_of(bits: u32) -> Parts {
    var m = bits & 0x7fffffu;
    var e = i32((bits >> 23u) & 0xffu);
    if (e == 0) {
        if (m != 0u) {
            let shift = countLeadingZeros(m) - 8u;
            m = m << shift;
            e = 1 - i32(shift);
        }
    } else {
        m |= 0x800000u;
    }
    return Parts(bits & 0x80000000u, e, m);
}

fn is_special(bits: u32) -> bool { return (bits & 0x7f800000u) == 0x7f800000u; }

// r * 2^e, rounded; r is not 0.
fn rounded(sign: u32, r_in: vec2<u32>, e_in: i32) -> u32 {
    var zeros = countLeadingZeros(r_in.y);
    if (r_in.y == 0u) { zeros = 32u + countLeadingZeros(r_in.x); }
    let r = shifted_left(r_in, zeros);
    let field = e_in - i32(zeros) + 190;
    if (field >= 255) { return sign | 0x7f800000u; }
    var shift = 38u;
    if (field < 1) { shift = 38u + u32(min(1 - field, 40)); }
    let q = jammed_right(r, shift).x;
    var m = q >> 2u;
    let rest = q & 3u;
    if (rest == 3u || (rest == 2u && (m & 1u) == 1u)) { m += 1u; }
    if (field < 1) { return sign | m; }
    return sign | min((u32(field - 1) << 23u) + m, 0x7f800000u);
}

fn fma_bits(a: u32, b: u32, c: u32) -> u32 {
    let x = parts_of(a);
    let y = parts_of(b);
    let z = parts_of(c);
    var sign = x.sign ^ y.sign;
    if (x.mantissa == 0u || y.mantissa == 0u) {
        if (z.mantissa == 0u) { return select(0u, c, sign == z.sign); }
        return c;
    }
    // The product and the addend, each with its first bit at 61 or 62.
    var sum = shifted_left(product64(x.mantissa, y.mantissa), 15u);
    var e = x.exponent + y.exponent - 315;
    if (z.mantissa != 0u) {
        let addend = vec2<u32>(0u, z.mantissa << 6u);
        let d = e - (z.exponent - 188);
        let is_small = d > 0;
        // Of two shifts the code would be twice as long, and compilers of software adapters copy it for every call.
        let larger = select(addend, sum, is_small);
        let smaller = jammed_right(select(sum, addend, is_small), u32(min(abs(d), 64)));
        let of_larger = select(z.sign, sign, is_small);
        if (!is_small) { e = z.exponent - 188; }
        if (sign == z.sign) {
            sum = sum64(larger, smaller);
        } else if (less64(larger, smaller)) {
            sum = difference64(smaller, larger);
            sign = of_larger ^ 0x80000000u;
        } else {
            sum = difference64(larger, smaller);
            sign = of_larger;
            if (sum.x == 0u && sum.y == 0u) { return 0u; }
        }
    }
    return rounded(sign, sum, e);
}

fn fma_(a: f32, b: f32, c: f32) -> f32 {
    let x = bitcast<u32>(a);
    let y = bitcast<u32>(b);
    let z = bitcast<u32>(c);
    if (is_special(x) || is_special(y) || is_special(z)) { return a * b + c; }
    return bitcast<f32>(fma_bits(x, y, z));
}

fn mul_(a: f32, b: f32) -> f32 { return fma_(a, b, bitcast<f32>(0x80000000u)); }
fn add_(a: f32, b: f32) -> f32 { return fma_(a, 1.0, b); }

fn div_(a: f32, b: f32) -> f32 {
    let x = parts_of(bitcast<u32>(a));
    let y = parts_of(bitcast<u32>(b));
    if (is_special(bitcast<u32>(a)) || is_special(bitcast<u32>(b)) || x.mantissa == 0u || y.mantissa == 0u) {
        return a / b;
    }
    var q = 0u;
    var r = x.mantissa;
    for (var i = 0u; i < times(27u); i++) {
        q = q << 1u;
        if (r >= y.mantissa) {
            r -= y.mantissa;
            q |= 1u;
        }
        r = r << 1u;
    }
    let exact = (q << 1u) | select(0u, 1u, r != 0u);
    return bitcast<f32>(rounded(x.sign ^ y.sign, vec2<u32>(exact, 0u), x.exponent - y.exponent - 27));
}

fn sqrt_(a: f32) -> f32 {
    let x = parts_of(bitcast<u32>(a));
    if (is_special(bitcast<u32>(a)) || x.mantissa == 0u || x.sign != 0u) { return sqrt(a); }
    var m = x.mantissa;
    var e = x.exponent - 150;
    if ((e & 1) != 0) {
        m = m << 1u;
        e -= 1;
    }
    let square = shifted_left(vec2<u32>(m, 0u), 26u);
    var root = 0u;
    for (var i = 0u; i < times(27u); i++) {
        let next = root | (1u << (26u - i));
        if (!less64(square, product64(next, next))) { root = next; }
    }
    let lost = product64(root, root);
    let is_exact = lost.x == square.x && lost.y == square.y;
    let r = (root << 1u) | select(1u, 0u, is_exact);
    return bitcast<f32>(rounded(0u, vec2<u32>(r, 0u), (e - 26) / 2 - 1));
}

fn float_(i: i32) -> f32 { return fma_(f32(i >> 12u), 4096.0, f32(i & 4095)); }

fn half_(h: u32) -> f32 {
    let sign = (h & 0x8000u) << 16u;
    let e = (h >> 10u) & 31u;
    let m = h & 1023u;
    if (e == 31u) { return bitcast<f32>(sign | 0x7f800000u | (m << 13u)); }
    if (e == 0u) {
        if (m == 0u) { return bitcast<f32>(sign); }
        let shift = countLeadingZeros(m) - 21u;
        return bitcast<f32>(sign | ((113u - shift) << 23u) | (((m << shift) & 1023u) << 13u));
    }
    return bitcast<f32>(sign | ((e + 112u) << 23u) | (m << 13u));
}

fn half_low(w: u32) -> f32 { return half_(w & 0xffffu); }
fn half_high(w: u32) -> f32 { return half_(w >> 16u); }
