//! Element types of tensors as GGUF files name them: ids, names, and the size of one block.
//!
//! Ids and block sizes are those of the GGUF specification (`ggml_type` in
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>). Every id of that list is known here, so
//! that a file with a type that fewbit cannot run is refused by name.

/// The element type of a tensor.
///
/// A tensor's rows are cut into blocks of [`block_elems`](Self::block_elems) consecutive elements, and each
/// block takes [`block_bytes`](Self::block_bytes) bytes. Plain types have blocks of one element.
#[allow(non_camel_case_types, missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TensorType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    I8,
    I16,
    I32,
    I64,
    F64,
    IQ1_M,
    BF16,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
    Q2_0,
}

/// One row of the table below: type, GGUF id, name, elements and bytes of a block.
type Row = (TensorType, u32, &'static str, usize, usize);

#[rustfmt::skip]
const TABLE: [Row; 35] = [
    (TensorType::F32,      0, "F32",       1,   4),
    (TensorType::F16,      1, "F16",       1,   2),
    (TensorType::Q4_0,     2, "Q4_0",     32,  18),
    (TensorType::Q4_1,     3, "Q4_1",     32,  20),
    (TensorType::Q5_0,     6, "Q5_0",     32,  22),
    (TensorType::Q5_1,     7, "Q5_1",     32,  24),
    (TensorType::Q8_0,     8, "Q8_0",     32,  34),
    (TensorType::Q8_1,     9, "Q8_1",     32,  36),
    (TensorType::Q2_K,    10, "Q2_K",    256,  84),
    (TensorType::Q3_K,    11, "Q3_K",    256, 110),
    (TensorType::Q4_K,    12, "Q4_K",    256, 144),
    (TensorType::Q5_K,    13, "Q5_K",    256, 176),
    (TensorType::Q6_K,    14, "Q6_K",    256, 210),
    (TensorType::Q8_K,    15, "Q8_K",    256, 292),
    (TensorType::IQ2_XXS, 16, "IQ2_XXS", 256,  66),
    (TensorType::IQ2_XS,  17, "IQ2_XS",  256,  74),
    (TensorType::IQ3_XXS, 18, "IQ3_XXS", 256,  98),
    (TensorType::IQ1_S,   19, "IQ1_S",   256,  50),
    (TensorType::IQ4_NL,  20, "IQ4_NL",   32,  18),
    (TensorType::IQ3_S,   21, "IQ3_S",   256, 110),
    (TensorType::IQ2_S,   22, "IQ2_S",   256,  82),
    (TensorType::IQ4_XS,  23, "IQ4_XS",  256, 136),
    (TensorType::I8,      24, "I8",        1,   1),
    (TensorType::I16,     25, "I16",       1,   2),
    (TensorType::I32,     26, "I32",       1,   4),
    (TensorType::I64,     27, "I64",       1,   8),
    (TensorType::F64,     28, "F64",       1,   8),
    (TensorType::IQ1_M,   29, "IQ1_M",   256,  56),
    (TensorType::BF16,    30, "BF16",      1,   2),
    (TensorType::TQ1_0,   34, "TQ1_0",   256,  54),
    (TensorType::TQ2_0,   35, "TQ2_0",   256,  66),
    (TensorType::MXFP4,   39, "MXFP4",    32,  17),
    (TensorType::NVFP4,   40, "NVFP4",    64,  36),
    (TensorType::Q1_0,    41, "Q1_0",    128,  18),
    (TensorType::Q2_0,    42, "Q2_0",     64,  18),
];

impl TensorType {
    /// Every type, in the order of its GGUF id.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static Row {
        // The enum lists its variants in the table's order (a test checks every row).
        &TABLE[self as usize]
    }

    /// The type with this GGUF id, or `None` for an id that the specification does not list.
    pub fn from_gguf_id(id: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == id).map(|row| row.0)
    }

    /// The type with this name (`Q4_K`, `F16`; letter case does not matter).
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.2.eq_ignore_ascii_case(name)).map(|row| row.0)
    }

    /// The id that stands for this type in a GGUF file.
    pub fn gguf_id(self) -> u32 {
        self.row().1
    }

    /// The name that GGUF tools print, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements in one block.
    pub fn block_elems(self) -> usize {
        self.row().3
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Bytes of a row of `n_cols` elements; `None` if the row is no whole number of blocks, or overflows.
    pub fn row_bytes(self, n_cols: usize) -> Option<usize> {
        if !n_cols.is_multiple_of(self.block_elems()) {
            return None;
        }
        (n_cols / self.block_elems()).checked_mul(self.block_bytes())
    }

    /// Bits that one element takes on average, scales included.
    pub fn bits_per_weight(self) -> f64 {
        8.0 * self.block_bytes() as f64 / self.block_elems() as f64
    }

    /// Whether [`decode`](crate::decode()) and the matrix products can read this type.
    pub fn is_supported(self) -> bool {
        use TensorType::*;
        match self {
            F32 | F16 | BF16 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q2_K | Q3_K | Q4_K | Q5_K | Q6_K => true,
            IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_NL | IQ4_XS => true,
            TQ1_0 | TQ2_0 | MXFP4 => true,
            F64 | I8 | I16 | I32 | I64 | Q8_1 | Q8_K | NVFP4 | Q1_0 | Q2_0 => false,
        }
    }

    /// Whether [`decode`](crate::decode()) can read this type: those that products read, and the plain
    /// numbers that small tensors are stored in.
    pub fn is_decodable(self) -> bool {
        use TensorType::*;
        self.is_supported() || matches!(self, F64 | I8 | I16 | I32 | I64)
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_rows_follow_the_enum() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, i, "{}", row.2);
            assert_eq!(TensorType::from_gguf_id(row.1), Some(row.0));
            assert_eq!(TensorType::from_name(&row.2.to_lowercase()), Some(row.0));
        }
        assert_eq!(TensorType::from_gguf_id(4), None, "Q4_2 was removed from the format");
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(TensorType::Q4_1.row_bytes(576), Some(360));
        assert_eq!(TensorType::Q4_K.row_bytes(576), None);
        assert_eq!(TensorType::F64.row_bytes(usize::MAX), None);
    }
}
