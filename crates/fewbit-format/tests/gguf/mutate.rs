//! A fuzzer that needs no tools: valid files, damaged in thousands of ways that are the same in every run.
//!
//! `fuzz/` has the same target for a coverage-guided fuzzer, which finds more and takes longer.

use fewbit_format::{GgufFile, Header, parse};
use proptest::prelude::*;

use crate::samples::{full, small};

/// Checks everything that [`parse`] guarantees about a file that it accepts.
fn check_consistency(bytes: &[u8], header: &Header) {
    assert!(matches!(header.version, 2 | 3));
    assert!(header.alignment.is_power_of_two());
    assert!(header.data_offset.is_multiple_of(header.alignment));
    let mut ranges = Vec::new();
    for tensor in header.tensors() {
        assert_eq!(header.tensor(&tensor.name), Some(tensor));
        assert!((1..=4).contains(&tensor.shape.len()) && !tensor.shape.contains(&0));
        let (n_rows, n_cols) = tensor.shape.split_at(tensor.shape.len() - 1);
        let row_bytes = tensor.ty.row_bytes(n_cols[0] as usize).expect("whole blocks");
        assert_eq!(n_rows.iter().product::<u64>() * row_bytes as u64, tensor.n_bytes);
        assert!(tensor.offset >= header.data_offset && tensor.offset + tensor.n_bytes <= bytes.len() as u64);
        ranges.push(tensor.offset..tensor.offset + tensor.n_bytes);
    }
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
    for (key, value) in header.metadata.iter() {
        assert_eq!(header.metadata.get(key).map(|v| v.type_name()), Some(value.type_name()));
    }
}

/// A small generator (xorshift64*), so that every run damages the same bytes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `n`.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// A number at which parsers tend to fail.
    fn edge(&mut self) -> u64 {
        let near = self.next() % 5;
        match self.next() % 8 {
            0 => near,
            1 => u64::MAX - near,
            2 => (u64::from(u32::MAX)).wrapping_add(near).wrapping_sub(2),
            3 => (1 << 63) - near,
            4 => (1u64 << (self.next() % 64)).wrapping_sub(near),
            5 => 32 * near,
            6 => u64::from(i32::MAX as u32) + near,
            _ => self.next(),
        }
    }

    /// Damages a file in one of several ways.
    fn damage(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let at = self.below(bytes.len());
        match self.next() % 8 {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = self.next() as u8,
            2 | 3 => {
                let edge = self.edge().to_le_bytes();
                for (to, from) in bytes[at..].iter_mut().zip(&edge[..if self.below(2) == 0 { 4 } else { 8 }]) {
                    *to = *from;
                }
            }
            4 => bytes.truncate(at),
            5 => {
                let end = (at + self.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            6 => {
                let end = (at + self.below(64)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = self.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => {
                let from = self.below(other.len());
                let to = (from + self.below(64)).min(other.len());
                for (to, from) in bytes[at..].iter_mut().zip(&other[from..to]) {
                    *to = *from;
                }
            }
        }
    }
}

#[test]
fn damaged_files_are_rejected_or_parse_consistently() {
    let files = [small().to_bytes().unwrap(), full().to_bytes().unwrap()];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut n_accepted, mut n_refused) = (0, 0);
    for i in 0..50_000 {
        let mut bytes = files[i % 2].clone();
        for _ in 0..1 + random.below(3) {
            random.damage(&mut bytes, &files[(i + 1) % 2]);
        }
        match parse(&bytes) {
            Ok(header) => {
                check_consistency(&bytes, &header);
                let file = GgufFile::from_bytes(bytes).unwrap();
                for tensor in file.tensors() {
                    assert_eq!(file.tensor_bytes(tensor).len() as u64, tensor.n_bytes);
                }
                n_accepted += 1;
            }
            Err(error) => {
                let message = error.to_string();
                assert!(!message.is_empty() && !message.chars().any(char::is_control), "{message:?}");
                n_refused += 1;
            }
        }
    }
    // Damage that only hits values or weights is not detected; damage to the structure must be.
    assert!(n_accepted > 2000 && n_refused > 20_000, "{n_accepted} accepted, {n_refused} refused");
}

#[test]
fn truncated_files_are_rejected() {
    for mut writer in [small(), full()] {
        let bytes = writer.to_bytes().unwrap();
        let header = parse(&bytes).unwrap();
        let end = header.tensors().iter().map(|tensor| tensor.offset + tensor.n_bytes).max().unwrap();
        for n in 0..end as usize {
            assert!(parse(&bytes[..n]).is_err(), "cut at byte {n}");
        }
        for n in end as usize..=bytes.len() {
            check_consistency(&bytes[..n], &parse(&bytes[..n]).unwrap());
        }
    }
}

#[test]
fn any_value_of_any_header_byte_is_handled() {
    let file = small().to_bytes().unwrap();
    let header_bytes = parse(&file).unwrap().data_offset as usize;
    for at in 0..header_bytes {
        let mut bytes = file.clone();
        for value in 0..=255 {
            bytes[at] = value;
            if let Ok(header) = parse(&bytes) {
                check_consistency(&bytes, &header);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn flipped_bytes_do_not_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = full().to_bytes().unwrap();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(header) = parse(&bytes) {
            check_consistency(&bytes, &header);
        }
    }

    #[test]
    fn random_bytes_after_a_valid_start_do_not_panic(
        n_tensors in 0..3u64,
        n_values in 0..3u64,
        rest in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => 0..16u8, 1 => any::<u8>()], 0..400),
    ) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(n_tensors.to_le_bytes());
        bytes.extend(n_values.to_le_bytes());
        bytes.extend(rest);
        if let Ok(header) = parse(&bytes) {
            check_consistency(&bytes, &header);
        }
    }
}
