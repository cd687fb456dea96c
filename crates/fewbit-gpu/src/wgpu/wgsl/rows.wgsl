// One function for each element of some rows.

@group(0) @binding(2) var<storage, read_write> to: array<f32>;
#if SECOND
@group(0) @binding(3) var<storage, read> other: array<f32>;
#endif

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= shape.width) { return; }
    let row = id.y;
    let at = row * shape.width + id.x;
    BODY
}
