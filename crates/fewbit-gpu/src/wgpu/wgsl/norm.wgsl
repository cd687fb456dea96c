// `x / sqrt(mean(x^2) + eps) * weight` of one row, or of one part of it; with MEAN, of `x - mean(x)`. Sums are 16 strided
// chains, then a tree.

#if IN_PLACE
@group(0) @binding(2) var<storage, read_write> to: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
#else
@group(0) @binding(2) var<storage, read> source: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
@group(0) @binding(4) var<storage, read_write> to: array<f32>;
#endif

var<workgroup> sums: array<f32, 16>;
var<workgroup> scale: f32;
#if MEAN
var<workgroup> mean: f32;
#endif

fn element(i: u32) -> f32 {
#if IN_PLACE
    return to[i];
#else
    return source[i];
#endif
}

fn at(i: u32) -> f32 {
#if MEAN
    return sub_(element(i), mean);
#else
    return element(i);
#endif
}

fn add_lanes() {
    for (var width = 8u; width > 0u; width = width / 2u) {
        for (var i = 0u; i < width; i++) { sums[i] = add_(sums[i], sums[i + width]); }
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let n = shape.part;
    let base = group.y * shape.width + group.x * n;
#if MEAN
    if (local.x < 16u) {
        var sum = 0.0;
        for (var i = local.x; i < n; i += 16u) { sum = add_(sum, element(base + i)); }
        sums[local.x] = sum;
    }
    workgroupBarrier();
    if (local.x == 0u) {
        add_lanes();
        mean = div_(sums[0], f32(n));
    }
    workgroupBarrier();
#endif
    if (local.x < 16u) {
        var sum = 0.0;
        for (var i = local.x; i < n; i += 16u) {
            let v = at(base + i);
            sum = fma_(v, v, sum);
        }
        sums[local.x] = sum;
    }
    workgroupBarrier();
    if (local.x == 0u) {
        add_lanes();
        scale = div_(1.0, sqrt_(add_(div_(sums[0], f32(n)), shape.f)));
    }
    workgroupBarrier();
    for (var i = local.x; i < n; i += 64u) {
        to[base + i] = mul_(mul_(at(base + i), scale), weight[i]);
    }
}
