// Rotates the pairs of every head by the angles of its row's position.

@group(0) @binding(2) var<storage, read_write> to: array<f32>;
@group(0) @binding(3) var<storage, read> angles: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    // shape: part = head, a = 1 for local angles, b = 1 for interleaved pairs.
    let half = select(step.global_n, step.local_n, shape.a == 1u);
    let angles_at = select(step.global_at, step.local_at, shape.a == 1u);
    if (id.x >= shape.width / shape.part * half) { return; }
    let head = id.x / half;
    let i = id.x % half;
    let row = id.y;
    let cos = angles[angles_at + row * half + i];
    let sin = angles[angles_at + (step.n_tokens + row) * half + i];
    let base = row * shape.width + head * shape.part;
    let first = base + select(i, 2u * i, shape.b == 1u);
    let second = base + select(i + half, 2u * i + 1u, shape.b == 1u);
    let a = to[first];
    let b = to[second];
    to[first] = fma_(a, cos, -mul_(b, sin));
    to[second] = fma_(b, cos, mul_(a, sin));
}
