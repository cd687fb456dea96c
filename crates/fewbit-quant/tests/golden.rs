//! Decoded weights against numbers made with NumPy, bit for bit.
//!
//! `golden/make_golden.py` made the files and says what is in them: per type some blocks, then the values
//! that they decode to.

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

        /// A type that gets a decoder needs golden numbers as well.
        #[test]
        fn every_supported_type_has_golden_numbers() {
            let tested = [$(TensorType::$ty),*];
            for ty in TensorType::all().filter(|ty| ty.is_supported()) {
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
}
