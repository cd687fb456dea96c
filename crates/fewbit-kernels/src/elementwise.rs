//! Operations on rows: normalization, rotary embedding, activation functions, quantization.
//!
//! Each function is one plain definition that is compiled several times: for the baseline of the target and,
//! through [`multiversion!`], with the vector instructions of each x86-64 level. Rust never reorders or
//! contracts float operations, so all versions give the same bits.

use crate::Isa;
use crate::activations::{quantize_block, sum_codes};
use crate::math::{SUM_LANES, clamped_silu_with, exp_with, fma, gelu_tanh_with, silu_with, tanh_with, tree_sum};
use fewbit_quant::{GateFunction, RopeStyle};

/// Compiles a function for each instruction set and adds a dispatcher that takes the [`Isa`] as its first argument. In
/// the body, `FMA` is true if the instruction set has fused multiply-adds; [`fma`] and others take it as a parameter.
macro_rules! multiversion {
    ($(#[$doc:meta])* pub(crate) fn $name:ident $(<$t:ident: $bound:ident>)? ($($arg:ident: $ty:ty),* $(,)?)
     $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        pub(crate) fn $name $(<$t: $bound>)? (isa: Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn definition<const FMA: bool $(, $t: $bound)?> ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$t: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                definition::<true $(, $t)?>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
            fn avx512 $(<$t: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                definition::<true $(, $t)?>($($arg),*)
            }

            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: a `Cpu` is made only with an `Isa` that `Isa::require` found on this CPU.
                Isa::Avx2 | Isa::AvxVnni => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Isa::Avx512 => unsafe { avx512($($arg),*) },
                _ => definition::<{ $crate::math::HAS_FMA } $(, $t)?>($($arg),*),
            }
        }
    };
}
pub(crate) use multiversion;

/// `1 / sqrt(mean(x^2) + eps)`: the sum of squares in 16 strided chains, then a tree.
#[inline(always)]
fn rms_scale<const FMA: bool>(x: &[f32], eps: f32) -> f32 {
    let mut lanes = [0.0f32; SUM_LANES];
    let (chunks, rest) = x.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = fma::<FMA>(v, v, *lane);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = fma::<FMA>(v, v, *lane);
    }
    1.0 / (tree_sum(lanes) / x.len() as f32 + eps).sqrt()
}

multiversion! {
    /// `out = x / sqrt(mean(x^2) + eps) * weight`; see [`rms_scale`].
    pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == out.len());
        let scale = rms_scale::<FMA>(x, eps);
        for ((y, &x), &w) in out.iter_mut().zip(x).zip(weight) {
            *y = (x * scale) * w;
        }
    }
}

multiversion! {
    /// `out = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight`. Both means are sums in 16 strided chains and
    /// then a tree.
    pub(crate) fn layer_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == out.len());
        let mut lanes = [0.0f32; SUM_LANES];
        let (chunks, rest) = x.as_chunks::<SUM_LANES>();
        for chunk in chunks {
            lanes.iter_mut().zip(chunk).for_each(|(lane, &v)| *lane += v);
        }
        lanes.iter_mut().zip(rest).for_each(|(lane, &v)| *lane += v);
        let mean = tree_sum(lanes) / x.len() as f32;
        for (y, &x) in out.iter_mut().zip(x) {
            *y = x - mean;
        }
        let scale = rms_scale::<FMA>(out, eps);
        for (y, &w) in out.iter_mut().zip(weight) {
            *y = (*y * scale) * w;
        }
    }
}

multiversion! {
    /// [`rms_norm`] in place.
    pub(crate) fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
        let scale = rms_scale::<FMA>(x, eps);
        for (x, &w) in x.iter_mut().zip(weight) {
            *x = (*x * scale) * w;
        }
    }
}

multiversion! {
    /// `x += factor * y`, as one `mul_add`.
    pub(crate) fn add_scaled(x: &mut [f32], y: &[f32], factor: f32) {
        for (x, &y) in x.iter_mut().zip(y) {
            *x = fma::<FMA>(y, factor, *x);
        }
    }
}

multiversion! {
    /// `x = cap * tanh(x * inverse)`, where `inverse` is `1 / cap`.
    pub(crate) fn softcap(x: &mut [f32], cap: f32, inverse: f32) {
        for x in x {
            *x = cap * tanh_with::<FMA>(*x * inverse);
        }
    }
}

multiversion! {
    /// One row into blocks of 32; see `fewbit_quant::activation`. Scales and sums are `[k / 32]`.
    pub(crate) fn quantize_row_32(x: &[f32], codes: &mut [i8], scales: &mut [f32], sums: &mut [i16]) {
        let blocks = x.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0);
        for ((x, codes), (scale, sum)) in blocks.zip(scales.iter_mut().zip(sums)) {
            *scale = quantize_block(x, codes);
            *sum = sum_codes(codes);
        }
    }
}

multiversion! {
    /// One row into blocks of 256, with one sum per 16 codes; see `fewbit_quant::activation`.
    pub(crate) fn quantize_row_256(x: &[f32], codes: &mut [i8], scales: &mut [f32], sums: &mut [i16]) {
        let blocks = x.as_chunks::<256>().0.iter().zip(codes.as_chunks_mut::<256>().0);
        for ((x, codes), (scale, sums)) in blocks.zip(scales.iter_mut().zip(sums.as_chunks_mut::<16>().0)) {
            *scale = quantize_block(x, codes);
            for (codes, sum) in codes.as_chunks::<16>().0.iter().zip(sums) {
                *sum = sum_codes(codes);
            }
        }
    }
}

multiversion! {
    /// The rounding error of quantizing to `codes` with one scale per `block`: `out = fma(-scale, code, x)`.
    pub(crate) fn quantization_loss(x: &[f32], codes: &[i8], scales: &[f32], block: usize, out: &mut [f32]) {
        let blocks = x.chunks_exact(block).zip(codes.chunks_exact(block)).zip(out.chunks_exact_mut(block));
        for (((x, codes), out), &scale) in blocks.zip(scales) {
            for ((y, &x), &code) in out.iter_mut().zip(x).zip(codes) {
                *y = fma::<FMA>(-scale, f32::from(code), x);
            }
        }
    }
}

multiversion! {
    /// `gate = f(gate) * up`.
    pub(crate) fn gate_mul(function: GateFunction, gate: &mut [f32], up: &[f32]) {
        match function {
            GateFunction::Silu => {
                for (g, &u) in gate.iter_mut().zip(up) {
                    *g = silu_with::<FMA>(*g) * u;
                }
            }
            GateFunction::GeluTanh => {
                for (g, &u) in gate.iter_mut().zip(up) {
                    *g = gelu_tanh_with::<FMA>(*g) * u;
                }
            }
            GateFunction::ClampedSilu => {
                for (g, &u) in gate.iter_mut().zip(up) {
                    *g = clamped_silu_with::<FMA>(*g, u);
                }
            }
        }
    }
}

multiversion! {
    /// `x = max(x, 0)^2`.
    pub(crate) fn squared_relu(x: &mut [f32]) {
        for x in x {
            // A comparison, so that NaN stays NaN.
            let positive = if *x < 0.0 { 0.0 } else { *x };
            *x = positive * positive;
        }
    }
}

multiversion! {
    /// `x *= 1 / (1 + e^-gate)`.
    pub(crate) fn sigmoid_mul(x: &mut [f32], gate: &[f32]) {
        for (x, &g) in x.iter_mut().zip(gate) {
            *x *= 1.0 / (1.0 + exp_with::<FMA>(-g));
        }
    }
}

multiversion! {
    /// `out += x`.
    pub(crate) fn add(out: &mut [f32], x: &[f32]) {
        for (y, &x) in out.iter_mut().zip(x) {
            *y += x;
        }
    }
}

multiversion! {
    /// Rotates the pairs of one head vector: `(a, b) -> (a cos - b sin, b cos + a sin)`, where the product with `cos`
    /// is the one inside the fused multiply-add. `cos` and `sin` are `[n_rotated / 2]`; elements after `n_rotated` are
    /// unchanged.
    pub(crate) fn rope(style: RopeStyle, cos: &[f32], sin: &[f32], x: &mut [f32]) {
        let half = cos.len();
        match style {
            RopeStyle::Interleaved => {
                for ((pair, &c), &s) in x[..2 * half].as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                    let [a, b] = *pair;
                    *pair = [fma::<FMA>(a, c, -(b * s)), fma::<FMA>(b, c, a * s)];
                }
            }
            RopeStyle::HalfSplit => {
                let (lo, hi) = x[..2 * half].split_at_mut(half);
                for (((a, b), &c), &s) in lo.iter_mut().zip(hi).zip(cos).zip(sin) {
                    (*a, *b) = (fma::<FMA>(*a, c, -(*b * s)), fma::<FMA>(*b, c, *a * s));
                }
            }
        }
    }
}
