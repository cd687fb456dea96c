//! Compares decoded weights with numbers computed by NumPy, bit for bit.
//!
//! `golden/make_golden.py` made the files and documents them: for each type some blocks, then the values that they
//! decode to.

use fewbit_quant::block::FloatScale;
use fewbit_quant::format::write_random_scales;
use fewbit_quant::{TensorType, decode};

/// Compares one type's file; returns how many values it holds.
fn check(ty: TensorType, file: &[u8]) -> usize {
    let per_block = ty.block_bytes() + 4 * ty.block_elems();
    assert!(file.len().is_multiple_of(per_block), "{ty}: {} bytes", file.len());
    let n_blocks = file.len() / per_block;
    let (blocks, expected) = file.split_at(n_blocks * ty.block_bytes());

    let mut decoded = vec![0.0; n_blocks * ty.block_elems()];
    decode(ty, blocks, &mut decoded).unwrap();

    let (expected, rest) = expected.as_chunks::<4>();
    assert!(rest.is_empty() && expected.len() == decoded.len());
    for (i, (found, expected)) in decoded.iter().zip(expected).enumerate() {
        let expected = f32::from_le_bytes(*expected);
        assert!(
            found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()),
            "{ty} block {} element {}: found {found:e} ({:#010x}), expected {expected:e} ({:#010x})",
            i / ty.block_elems(),
            i % ty.block_elems(),
            found.to_bits(),
            expected.to_bits(),
        );
    }
    decoded.len()
}

macro_rules! golden {
    ($($test:ident: $ty:ident, $file:literal;)*) => {
        $(#[test]
        fn $test() {
            let n = check(TensorType::$ty, include_bytes!(concat!("golden/", $file)));
            assert!(n >= 200, "{n} values are too few to tell decoders apart");
        })*

        /// Fails if a type gets a decoder but no golden numbers.
        #[test]
        fn every_decodable_type_has_golden_numbers() {
            let tested = [$(TensorType::$ty),*];
            for ty in TensorType::all().filter(|ty| ty.is_decodable()) {
                assert!(tested.contains(&ty), "{ty}");
            }
        }
    };
}

golden! {
    f32_values: F32, "f32.bin";
    f16_values: F16, "f16.bin";
    bf16_values: BF16, "bf16.bin";
    q4_0_values: Q4_0, "q4_0.bin";
    q4_1_values: Q4_1, "q4_1.bin";
    q5_0_values: Q5_0, "q5_0.bin";
    q5_1_values: Q5_1, "q5_1.bin";
    q8_0_values: Q8_0, "q8_0.bin";
    q2_k_values: Q2_K, "q2_k.bin";
    q3_k_values: Q3_K, "q3_k.bin";
    q4_k_values: Q4_K, "q4_k.bin";
    q5_k_values: Q5_K, "q5_k.bin";
    q6_k_values: Q6_K, "q6_k.bin";
    iq4_nl_values: IQ4_NL, "iq4_nl.bin";
    iq4_xs_values: IQ4_XS, "iq4_xs.bin";
    iq3_xxs_values: IQ3_XXS, "iq3_xxs.bin";
    iq3_s_values: IQ3_S, "iq3_s.bin";
    iq2_xxs_values: IQ2_XXS, "iq2_xxs.bin";
    iq2_xs_values: IQ2_XS, "iq2_xs.bin";
    iq2_s_values: IQ2_S, "iq2_s.bin";
    iq1_s_values: IQ1_S, "iq1_s.bin";
    iq1_m_values: IQ1_M, "iq1_m.bin";
    tq1_0_values: TQ1_0, "tq1_0.bin";
    tq2_0_values: TQ2_0, "tq2_0.bin";
    mxfp4_values: MXFP4, "mxfp4.bin";
    f64_values: F64, "f64.bin";
    i8_values: I8, "i8.bin";
    i16_values: I16, "i16.bin";
    i32_values: I32, "i32.bin";
    i64_values: I64, "i64.bin";
}

/// Sums over enough random blocks that every entry of every codebook is used.
#[test]
fn every_codebook_entry_matches_golden_sums() {
    let lines = include_str!("golden/grids.txt").lines();
    for (ty, expected) in lines.map(|line| line.split_once(' ').expect("a name and a sum")) {
        let ty = TensorType::from_name(ty).expect("a type");
        let mut state = 1u64;
        let mut blocks: Vec<u8> = (0..1024 * ty.block_bytes())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        for block in blocks.chunks_exact_mut(ty.block_bytes()) {
            match ty.format().expect("quantized").scale {
                FloatScale::Exponent(at) => block[at] = 127,
                scale => scale.write(block, 1.0, 0.0),
            }
        }
        let mut values = vec![0.0; 1024 * ty.block_elems()];
        decode(ty, &blocks, &mut values).unwrap();
        let sum = values
            .iter()
            .zip((1u64..).step_by(2))
            .fold(0u64, |sum, (value, odd)| sum.wrapping_add(u64::from(value.to_bits()).wrapping_mul(odd)));
        assert_eq!(format!("{sum:016x}"), expected, "{ty}");
    }
}

#[test]
fn random_blocks_decode_to_weights_of_similar_size() {
    let mut state = 1u64;
    for ty in TensorType::all().filter(|ty| ty.format().is_some()) {
        let mut sum = 0.0;
        for _ in 0..32 {
            let mut block: Vec<u8> = (0..ty.block_bytes())
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 56) as u8
                })
                .collect();
            write_random_scales(ty, &mut block, 0.02);
            let mut values = vec![0.0f32; ty.block_elems()];
            decode(ty, &block, &mut values).unwrap();
            sum += values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        }
        let size = (sum / 32.0).sqrt();
        assert!((0.013..0.030).contains(&size), "{ty}: {size}");
    }
}

/// The list in `docs/models.md` must match the table of types.
#[test]
fn documented_types_are_the_supported_ones() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/models.md");
    let page = std::fs::read_to_string(page).expect("the page of models");
    let row = page.lines().find_map(|line| line.strip_prefix("| weights | ")).expect("the row of weights");
    let list = row.split(", mixed in one file").next().unwrap_or("");
    let mut documented: Vec<&str> = list.split(", ").collect();
    let mut supported: Vec<&str> = TensorType::all().filter(|ty| ty.is_supported()).map(TensorType::name).collect();
    documented.sort_unstable();
    supported.sort_unstable();
    assert_eq!(documented, supported);
}
