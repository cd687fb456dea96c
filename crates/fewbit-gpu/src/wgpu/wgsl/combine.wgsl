// What the experts of a token give, weighted if their inputs were not, best first; then the shared expert.

@group(0) @binding(2) var<storage, read> outputs: array<f32>;
#if WEIGHS
@group(0) @binding(3) var<storage, read> routes: array<vec2<u32>>;
#endif
#if SHARED
@group(0) @binding(4) var<storage, read> shared_out: array<f32>;
#endif
#if SCORED
@group(0) @binding(5) var<storage, read> shared_score: array<f32>;
#endif
@group(0) @binding(6) var<storage, read_write> to: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    // shape: a = routes of a token.
    if (id.x >= shape.width) { return; }
    let token = id.y;
    var sum = 0.0;
    for (var i = token * shape.a; i < (token + 1u) * shape.a; i++) {
#if WEIGHS
        sum = fma_(outputs[i * shape.width + id.x], bitcast<f32>(routes[i].y), sum);
#else
        sum = add_(outputs[i * shape.width + id.x], sum);
#endif
    }
#if SHARED
    var weight = 1.0;
#if SCORED
    weight = sigmoid_(shared_score[token]);
#endif
    sum = fma_(shared_out[token * shape.width + id.x], weight, sum);
#endif
    to[token * shape.width + id.x] = sum;
}
