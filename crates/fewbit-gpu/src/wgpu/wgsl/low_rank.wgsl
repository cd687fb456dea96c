// What an adapter adds to the products of a matrix, of the rows that have it: first `t = scale * (A x)`, then `y += B t`.

@group(0) @binding(2) var<storage, read> w: array<f32>;
@group(0) @binding(3) var<storage, read> x: array<f32>;
// Row of the batch and scale, of each of the adapter's rows.
@group(0) @binding(4) var<storage, read> rows: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> to: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    // shape: width = outputs, part = inputs.
    if (id.x >= shape.width) { return; }
    let row = rows[id.y].x;
#if DOWN
    let from_at = row * shape.part;
    let to_at = id.y * shape.width + id.x;
#else
    let from_at = id.y * shape.part;
    let to_at = row * shape.width + id.x;
#endif
    var sum = 0.0;
    for (var k = 0u; k < shape.part; k++) { sum = fma_(w[id.x * shape.part + k], x[from_at + k], sum); }
#if DOWN
    to[to_at] = mul_(sum, bitcast<f32>(rows[id.y].y));
#else
    to[to_at] = add_(to[to_at], sum);
#endif
}
