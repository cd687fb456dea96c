// Reads a whole buffer, as fast as the device can: neighbouring threads read neighbouring words, four at a time. What they
// add up to is written, so that no read can be left out.

@group(0) @binding(2) var<storage, read> words: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> to: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    // shape: width = vectors of four words
    let stride = groups.x * 256u;
    var sum = vec4<u32>(0u);
    for (var i = id.x; i < shape.width; i += stride) { sum ^= words[i]; }
    to[id.x] = sum.x ^ sum.y ^ sum.z ^ sum.w ^ step.zero;
}
