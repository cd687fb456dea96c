// Multiplies and adds bytes, as fast as the device can: eight independent chains, 32 products each time round. The sums are
// written, so that none can be left out.

@group(0) @binding(2) var<storage, read_write> to: array<i32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    // shape: width = rounds
    let a = id.x * 0x9e3779b9u + step.n_tokens;
    var b = a ^ 0x85ebca6bu;
    var s0 = 0; var s1 = 0; var s2 = 0; var s3 = 0; var s4 = 0; var s5 = 0; var s6 = 0; var s7 = 0;
    for (var i = 0u; i < shape.width; i++) {
        s0 += dot4I8Packed(a, b);
        s1 += dot4I8Packed(a ^ 1u, b);
        s2 += dot4I8Packed(a ^ 2u, b);
        s3 += dot4I8Packed(a ^ 3u, b);
        s4 += dot4I8Packed(a ^ 4u, b);
        s5 += dot4I8Packed(a ^ 5u, b);
        s6 += dot4I8Packed(a ^ 6u, b);
        s7 += dot4I8Packed(a ^ 7u, b);
        b += 0x01030507u;
    }
    to[id.x] = s0 ^ s1 ^ s2 ^ s3 ^ s4 ^ s5 ^ s6 ^ s7;
}
