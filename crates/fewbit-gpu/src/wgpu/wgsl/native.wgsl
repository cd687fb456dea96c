// Arithmetic of the device: as fast as it is, within the bounds that WGSL gives.

@group(0) @binding(0) var<uniform> shape: Shape;
@group(0) @binding(1) var<uniform> step: Step;

fn fma_(a: f32, b: f32, c: f32) -> f32 { return fma(a, b, c); }
fn mul_(a: f32, b: f32) -> f32 { return a * b; }
fn add_(a: f32, b: f32) -> f32 { return a + b; }
fn div_(a: f32, b: f32) -> f32 { return a / b; }
fn sqrt_(a: f32) -> f32 { return sqrt(a); }
fn float_(i: i32) -> f32 { return f32(i); }
fn half_low(w: u32) -> f32 { return unpack2x16float(w).x; }
fn half_high(w: u32) -> f32 { return unpack2x16float(w).y; }
fn times(n: u32) -> u32 { return n; }
