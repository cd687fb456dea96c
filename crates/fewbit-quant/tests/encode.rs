//! The encoders: their error compared with llama.cpp's, the input that they reject, and that every input gives blocks
//! which decode to numbers.

use fewbit_quant::encode::{MAX_MAGNITUDE, encode, is_encodable};
use fewbit_quant::{QuantError, TensorType, decode};

const ROWS: usize = 128;
const COLS: usize = 512;

fn encodable() -> impl Iterator<Item = TensorType> {
    TensorType::all().filter(|&ty| is_encodable(ty))
}

/// Rows encoded and decoded again.
fn round_trip(ty: TensorType, x: &[f32], n_cols: usize, importance: Option<&[f32]>) -> Vec<f32> {
    let mut bytes = vec![0xaa; x.len() / n_cols * ty.row_bytes(n_cols).unwrap()];
    encode(ty, x, n_cols, importance, &mut bytes).unwrap_or_else(|error| panic!("{ty}: {error}"));
    let mut back = vec![f32::NAN; x.len()];
    decode(ty, &bytes, &mut back).unwrap();
    back
}

/// Numbers near a normal distribution (twelve uniform ones summed up), as `golden/make_rmse.py` makes them.
fn normal(n: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..n).map(|_| (0..12).map(|_| uniform()).sum::<f64>() - 6.0).collect()
}

fn weights(kind: &str) -> Vec<f32> {
    let mut a = normal(ROWS * COLS, 1);
    match kind {
        "heavy" => a.iter_mut().zip(normal(ROWS * COLS, 2)).for_each(|(a, b)| *a *= 0.25 + b * b),
        "shifted" => a.iter_mut().zip(normal(COLS, 3).iter().cycle()).for_each(|(a, b)| *a += b),
        _ => {}
    }
    a.iter().map(|v| (0.02 * v) as f32).collect()
}

fn importance() -> Vec<f32> {
    normal(COLS, 4).iter().map(|v| (0.05 + v * v) as f32).collect()
}

/// The root mean squared error, weighted, and relative to that of the weights themselves.
fn relative_error(x: &[f32], back: &[f32], importance: Option<&[f32]>) -> f64 {
    let (mut lost, mut total) = (0.0, 0.0);
    for (i, (&x, &y)) in x.iter().zip(back).enumerate() {
        let w = importance.map_or(1.0, |w| f64::from(w[i % w.len()]));
        lost += w * (f64::from(x) - f64::from(y)).powi(2);
        total += w * f64::from(x).powi(2);
    }
    (lost / total).sqrt()
}

/// `golden/make_rmse.py` measured llama.cpp's encoders on the same weights.
#[test]
fn no_type_has_a_larger_error_than_llama_cpp() {
    let importance = importance();
    let mut report = String::new();
    let mut worse = 0;
    for line in include_str!("golden/rmse.txt").lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (ty, kind) = (TensorType::from_name(fields[0]).unwrap(), fields[1]);
        let x = weights(kind);
        for (importance, theirs) in [(None, fields[2]), (Some(&importance[..]), fields[3])] {
            let theirs: f64 = theirs.parse().unwrap();
            let ours = relative_error(&x, &round_trip(ty, &x, COLS, importance), importance);
            // The reference figures have six decimals.
            let fits = ours <= theirs + 1e-6;
            worse += usize::from(!fits);
            let with = if importance.is_some() { "with importance" } else { "plain" };
            report += &format!("{ty} {kind} {with}: {ours:.6}, llama.cpp {theirs:.6} ({:.3})\n", ours / theirs);
        }
    }
    println!("{report}");
    assert!(worse == 0, "{worse} are worse");
}

/// Blocks that break careless encoders. In each of them, every weight is finite and at most `MAX_MAGNITUDE`.
fn adversarial() -> Vec<(&'static str, Vec<f32>)> {
    let n = 2 * 256;
    let of = |f: &dyn Fn(usize) -> f32| (0..n).map(f).collect::<Vec<f32>>();
    let tiny = f32::from_bits(1);
    vec![
        ("zero", of(&|_| 0.0)),
        ("negative zero", of(&|_| -0.0)),
        ("constant", of(&|_| 0.37)),
        ("negative constant", of(&|_| -0.37)),
        ("largest", of(&|_| MAX_MAGNITUDE)),
        ("largest of both signs", of(&|i| if i % 3 == 0 { MAX_MAGNITUDE } else { -MAX_MAGNITUDE })),
        ("subnormal", of(&|i| if i % 2 == 0 { tiny } else { -tiny })),
        ("smallest normal", of(&|i| if i % 5 == 0 { f32::MIN_POSITIVE } else { 0.0 })),
        ("one large among subnormal", of(&|i| if i % 64 == 9 { MAX_MAGNITUDE } else { tiny })),
        ("one small among zero", of(&|i| if i == 77 { 1e-14 } else { 0.0 })),
        ("below the smallest half", of(&|i| 1e-9 * (i % 7) as f32)),
        ("wide", of(&|i| 2f32.powi(i as i32 % 32 - 16))),
        ("ramp", of(&|i| i as f32 / 100.0)),
        ("alternating", of(&|i| if i % 2 == 0 { 1.0 } else { -1.0 })),
        ("positive and far", of(&|i| 1000.0 + (i % 3) as f32)),
    ]
}

#[test]
fn every_input_decodes_to_nearby_finite_values() {
    let importance: [(&str, Option<Vec<f32>>); 3] = [
        ("none", None),
        ("zero", Some(vec![0.0; 512])),
        ("one column", Some((0..512).map(|i| f32::from(u8::from(i == 77))).collect())),
    ];
    for (name, x) in adversarial() {
        let largest = x.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        for ty in encodable() {
            for (weighted, importance) in &importance {
                let back = round_trip(ty, &x, 512, importance.as_deref());
                // No weight decodes to more than twice the largest, or than the smallest scale allows.
                let bound = 2.0 * largest + 1e-5;
                for (i, &y) in back.iter().enumerate() {
                    assert!(
                        y.is_finite() && y.abs() <= bound,
                        "{ty}, {name}, importance {weighted}: weight {i} is {y}"
                    );
                }
            }
        }
    }
}

#[test]
fn representable_values_round_trip_exactly() {
    for ty in encodable() {
        for (name, x) in adversarial() {
            let same = match name {
                "zero" | "negative zero" => true,
                // In every other format, +1 and -1 times a power of two are on the grid.
                "alternating" => !matches!(ty, TensorType::IQ4_NL | TensorType::IQ4_XS | TensorType::Q8_0),
                "ramp" => ty == TensorType::F32,
                _ => continue,
            };
            let back = round_trip(ty, &x, 512, None);
            let worst = x.iter().zip(&back).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
            assert!(!same || worst <= 1e-3 * x.iter().fold(0.0f32, |a, v| a.max(v.abs())), "{ty}, {name}: {worst}");
        }
    }
}

#[test]
fn one_very_important_column_does_not_degrade_the_others() {
    // Sixteen levels per block, except for the last bits.
    let noise = normal(ROWS * COLS, 5);
    let level = |i: usize, noise: f64| match i % 32 {
        3 => 0,
        20 => 15,
        _ => (noise.abs() * 1e6) as usize % 16,
    };
    let x: Vec<f32> =
        (0..noise.len()).map(|i| (0.011 * level(i, noise[i]) as f64 - 0.07 + 2e-6 * noise[i]) as f32).collect();
    for heavy in [1e2, 1e4, 1e6] {
        let importance: Vec<f32> = (0..COLS).map(|i| if i % 32 == 7 { heavy } else { 1.0 }).collect();
        for ty in [TensorType::Q4_1, TensorType::Q5_1] {
            let back = round_trip(ty, &x, COLS, Some(&importance));
            let error = relative_error(&x, &back, None);
            assert!(error < 1e-3, "{ty}: {error} with a column of {heavy}");
        }
    }
}

#[test]
fn rows_are_encoded_independently_with_importance() {
    let (x, importance) = (weights("heavy"), importance());
    for ty in encodable() {
        let row_bytes = ty.row_bytes(COLS).unwrap();
        let mut all = vec![0; 5 * row_bytes];
        encode(ty, &x[..5 * COLS], COLS, Some(&importance), &mut all).unwrap();
        for row in 0..5 {
            let mut one = vec![0; row_bytes];
            encode(ty, &x[row * COLS..(row + 1) * COLS], COLS, Some(&importance), &mut one).unwrap();
            assert_eq!(one, all[row * row_bytes..(row + 1) * row_bytes], "{ty} row {row}");
        }
    }
}

#[test]
fn rows_are_encoded_independently_without_importance() {
    let x = weights("shifted");
    for ty in encodable() {
        let row_bytes = ty.row_bytes(COLS).unwrap();
        let mut all = vec![0; 5 * row_bytes];
        encode(ty, &x[..5 * COLS], COLS, None, &mut all).unwrap();
        for row in 0..5 {
            let mut one = vec![0; row_bytes];
            encode(ty, &x[row * COLS..(row + 1) * COLS], COLS, None, &mut one).unwrap();
            assert_eq!(one, all[row * row_bytes..(row + 1) * row_bytes], "{ty} row {row}");
        }
    }
}

#[test]
fn unencodable_weights_are_rejected_with_their_index() {
    for ty in encodable() {
        let mut bytes = vec![0; 2 * ty.row_bytes(256).unwrap()];
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![0.5; 512];
            x[300] = bad;
            assert_eq!(encode(ty, &x, 256, None, &mut bytes), Err(QuantError::NotFinite { index: 300 }), "{ty}");
        }
        let mut x = vec![0.5; 512];
        x[301] = f32::MAX;
        let expected = if ty == TensorType::F32 { Ok(()) } else { Err(QuantError::TooLarge { ty, index: 301 }) };
        assert_eq!(encode(ty, &x, 256, None, &mut bytes), expected, "{ty}");
    }
}

#[test]
fn sizes_types_and_importance_are_checked() {
    let x = [0.0; 512];
    let mut bytes = [0; 544];
    let result = encode(TensorType::IQ2_XXS, &x, 256, None, &mut bytes);
    assert_eq!(result, Err(QuantError::NotEncodable { ty: TensorType::IQ2_XXS }));
    assert!(encode(TensorType::Q8_0, &x, 256, None, &mut bytes).is_ok());
    for (ty, n_cols, n_bytes) in [
        (TensorType::Q8_0, 256, 543),
        (TensorType::Q8_0, 100, 544),
        (TensorType::Q8_0, 16, 544),
        (TensorType::Q8_0, 0, 544),
        (TensorType::Q4_K, 128, 288),
    ] {
        let error = encode(ty, &x, n_cols, None, &mut bytes[..n_bytes]).unwrap_err();
        assert!(matches!(error, QuantError::Size { .. }), "{ty} {n_cols} {n_bytes}: {error}");
    }
    let short = encode(TensorType::Q8_0, &x, 256, Some(&[1.0; 255]), &mut bytes).unwrap_err();
    assert!(matches!(short, QuantError::Size { .. }), "{short}");
    for bad in [-1.0, f32::NAN, f32::INFINITY] {
        let mut importance = [1.0; 256];
        importance[9] = bad;
        let result = encode(TensorType::Q8_0, &x, 256, Some(&importance), &mut bytes);
        assert_eq!(result, Err(QuantError::Importance { index: 9 }));
    }
}
