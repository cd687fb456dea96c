//! The constants that kernels derive from a type's row in `fewbit_quant::types`.
//!
//! Their file is compiled here by itself. As unit tests of the crate these would have all kernels compiled once more.

#[path = "../src/weights.rs"]
#[allow(dead_code, reason = "kernels use the rest")]
mod weights;

use fewbit_quant::TensorType;
use fewbit_quant::format::{ForQuantized, Quantized};
use weights::{Weights, meta_bytes_per_row};

/// Bytes stand for the levels of their codes, and the first table of the module docs gives their largest values.
#[test]
fn packed_bytes_decode_to_the_levels_of_their_codes() {
    struct Check;
    impl ForQuantized for Check {
        type Out = ();
        fn call<T: Quantized>(self) {
            for code in 0..=((1u32 << T::BITS) - 1) as u8 {
                let byte = match T::TABLE {
                    Some(table) => table[usize::from(code)],
                    None if T::SIGNED => code ^ 0x80,
                    None => code,
                };
                let value = if T::SIGNED { i32::from(byte as i8) } else { i32::from(byte) - T::OFFSET };
                assert_eq!(value, T::FORMAT.levels.at(code), "{} {code}", T::TYPE);
                let magnitude = if T::SIGNED { value.unsigned_abs() as usize } else { usize::from(byte) };
                assert!(magnitude <= T::BYTE_MAX, "{} {code}", T::TYPE);
            }
            assert!(T::SIGNED || T::OFFSET == 0 || T::OFFSET.count_ones() == 1, "{}", T::TYPE);
        }
    }
    assert_eq!(TensorType::all().filter_map(|ty| ty.dispatch(Check)).count(), 22);
}

/// The table above is that of the rows.
#[test]
fn documented_table_of_sizes_is_correct() {
    let mut n_types = 0;
    let table = include_str!("../src/weights.rs").lines().filter_map(|line| line.strip_prefix("//! | "));
    for line in table.filter(|line| !line.starts_with("type") && !line.starts_with("---")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let bits = |cell: &str, i: usize| -> f64 {
            let numbers: Vec<&str> = cell.split(':').next().unwrap_or("").split(", ").collect();
            numbers[i.min(numbers.len() - 1)].parse().expect("a number")
        };
        for (i, name) in cells[0].split(", ").enumerate() {
            let ty = TensorType::from_name(name).expect("a type");
            let format = ty.format().expect("a quantized type");
            let memory = format.bits as f64 + 8.0 * meta_bytes_per_row(format) as f64 / ty.block_elems() as f64;
            assert_eq!((ty.bits_per_weight(), memory), (bits(cells[1], i), bits(cells[2], i)), "{ty}");
            n_types += 1;
        }
    }
    assert_eq!(n_types, 12);
}
