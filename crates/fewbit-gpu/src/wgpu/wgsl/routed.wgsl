// The rows of routes: with the bias of their expert, or the row of their token multiplied by their weight.

@group(0) @binding(2) var<storage, read_write> to: array<f32>;
@group(0) @binding(3) var<storage, read> other: array<f32>;
@group(0) @binding(4) var<storage, read> routes: array<vec2<u32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    // shape: rows_per_token = routes of a token.
    if (id.x >= shape.width) { return; }
    let route = id.y;
    let at = route * shape.width + id.x;
#if BIASES
    to[at] = add_(to[at], other[routes[route].x * shape.width + id.x]);
#else
    let token = route / shape.rows_per_token;
    to[at] = mul_(other[token * shape.width + id.x], bitcast<f32>(routes[route].y));
#endif
}
