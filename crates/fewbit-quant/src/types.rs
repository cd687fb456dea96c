//! Element types of tensors as named in GGUF files: ids, names, and the size of one block.
//!
//! Ids and block sizes are those of the GGUF specification (`ggml_type` in
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>). Every id of that list is known here, so that the error
//! for a type that fewbit cannot run contains its name.
//!
//! `types!` is the only table of types: each row describes one type completely.

use crate::block::*;
use crate::codebook::*;
use crate::format::FloatScale::{Exponent, Half, HalfAndMin, HalfInNibbles};
use crate::format::IntegerScales::{Nibbles, Odd, One, Signed, SixBits};
use crate::format::Levels::{Offset, Table};
use crate::format::{ForQuantized, Format, Quantized, Reader};

/// What fewbit can do with a type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Multiply and decode.
    Weights,
    /// Decode only: small tensors may be stored in this type.
    Numbers,
    /// Print its name only.
    Name,
}

/// The properties of every type.
struct Row {
    ty: TensorType,
    id: u32,
    name: &'static str,
    block_elems: usize,
    block_bytes: usize,
    uses: Use,
    format: Option<&'static Format>,
}

/// Generates the enum, its rows and a [`Quantized`] type for each quantized type of the table below.
macro_rules! types {
    (
        floats { $($float:ident $float_id:literal $float_bytes:literal;)* }
        quantized { $(
            $name:ident $id:literal $elems:tt $bytes:literal
            $bits:literal $levels:expr, $scale:expr, $factor:literal, $integer:expr,
            $encodable:literal $short:ident $reader:ident as $kernel:ident;
        )* }
        numbers { $($number:ident $number_id:literal $number_bytes:literal;)* }
        names { $($only:ident $only_id:literal $only_elems:literal $only_bytes:literal;)* }
    ) => {
        /// The element type of a tensor.
        ///
        /// A tensor's rows are cut into blocks of [`block_elems`](Self::block_elems) consecutive elements, and each
        /// block takes [`block_bytes`](Self::block_bytes) bytes. Plain types have blocks of one element.
        #[allow(non_camel_case_types, missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum TensorType {
            $($float = $float_id,)*
            $($name = $id,)*
            $($number = $number_id,)*
            $($only = $only_id,)*
        }

        const ROWS: &[Row] = &[
            $(row(TensorType::$float, stringify!($float), 1, $float_bytes, Use::Weights, None),)*
            $(row(
                TensorType::$name,
                stringify!($name),
                $elems,
                $bytes,
                Use::Weights,
                Some(&<quantized::$name as Quantized>::FORMAT),
            ),)*
            $(row(TensorType::$number, stringify!($number), 1, $number_bytes, Use::Numbers, None),)*
            $(row(TensorType::$only, stringify!($only), $only_elems, $only_bytes, Use::Name, None),)*
        ];

        /// Each quantized type as a Rust type of its own.
        #[allow(non_camel_case_types)]
        pub mod quantized {
            use super::*;
            $(
                #[doc = concat!("[`TensorType::", stringify!($name), "`]")]
                #[derive(Debug)]
                pub struct $name;

                impl Quantized for $name {
                    const TYPE: TensorType = TensorType::$name;
                    const FORMAT: Format = Format {
                        bits: $bits,
                        levels: $levels,
                        scale: $scale,
                        scale_factor: $factor,
                        integer_scales: $integer,
                        is_encodable: $encodable,
                        for_short_rows: if $elems > 32 { Some(TensorType::$short) } else { None },
                        reader: types!(@reader $elems $reader),
                    };
                    type Kernel = $kernel;
                }
            )*
        }

        impl TensorType {
            /// Calls `f` with this type, if it is quantized and fewbit computes with it.
            pub fn dispatch<F: ForQuantized>(self, f: F) -> Option<F::Out> {
                match self {
                    $(Self::$name => Some(f.call::<quantized::$name>()),)*
                    _ => None,
                }
            }
        }
    };
    (@reader 32 $reader:ident) => { Reader::Of32($reader) };
    (@reader 256 $reader:ident) => { Reader::Of256($reader) };
}

const fn row(
    ty: TensorType,
    name: &'static str,
    block_elems: usize,
    block_bytes: usize,
    uses: Use,
    format: Option<&'static Format>,
) -> Row {
    Row { ty, id: ty as u32, name, block_elems, block_bytes, uses, format }
}

// The columns of `quantized`: id; elements and bytes of a block; bits and levels of codes; float scale and its factor;
// integer scales; whether there is an encoder; the type for short rows; the function that reads a block; the type whose
// kernels it runs.
types! {
    floats {
        F32       0 4;
        F16       1 2;
        BF16     30 2;
    }
    quantized {
        Q4_0      2  32  18   4 Offset(8),   Half(0), 1.0,              One,          true  Q4_0   q4_0     as Q4_0;
        Q4_1      3  32  20   4 Offset(0),   HalfAndMin(0, 2), 1.0,     One,          true  Q4_1   q4_1     as Q4_1;
        Q5_0      6  32  22   5 Offset(16),  Half(0), 1.0,              One,          true  Q5_0   q5_0     as Q5_0;
        Q5_1      7  32  24   5 Offset(0),   HalfAndMin(0, 2), 1.0,     One,          true  Q5_1   q5_1     as Q5_1;
        Q8_0      8  32  34   8 Offset(128), Half(0), 1.0,              One,          true  Q8_0   q8_0     as Q8_0;
        Q2_K     10 256  84   2 Offset(0),   HalfAndMin(80, 82), 1.0,   Nibbles(16),  true  Q4_0   q2_k     as Q2_K;
        Q3_K     11 256 110   3 Offset(4),   Half(108), 1.0,            Signed(16),   true  Q4_0   q3_k     as Q3_K;
        Q4_K     12 256 144   4 Offset(0),   HalfAndMin(0, 2), 1.0,     SixBits(32),  true  Q5_0   q4_k     as Q4_K;
        Q5_K     13 256 176   5 Offset(0),   HalfAndMin(0, 2), 1.0,     SixBits(32),  true  Q5_1   q5_k     as Q5_K;
        Q6_K     14 256 210   6 Offset(32),  Half(208), 1.0,            Signed(16),   true  Q8_0   q6_k     as Q6_K;
        IQ4_NL   20  32  18   4 Table(&LEVELS_IQ4), Half(0), 1.0,       One,          true  IQ4_NL iq4_nl   as IQ4_NL;
        IQ4_XS   23 256 136   4 Table(&LEVELS_IQ4), Half(0), 1.0,       Signed(32),   true  IQ4_NL iq4_xs   as IQ4_XS;
        IQ3_XXS  18 256  98   4 Table(&LEVELS_IQ3_XXS), Half(0), 0.25,  Odd(32),      false IQ4_NL iq3_xxs  as IQ3_XXS;
        IQ3_S    21 256 110   4 Table(&LEVELS_IQ3_S), Half(0), 1.0,     Odd(32),      false IQ4_NL iq3_s    as IQ3_S;
        IQ2_XXS  16 256  66   3 Table(&LEVELS_IQ2), Half(0), 0.125,     Odd(32),      false IQ4_NL iq2_xxs  as IQ2_XXS;
        IQ2_XS   17 256  74   3 Table(&LEVELS_IQ2), Half(0), 0.125,     Odd(16),      false IQ4_NL iq2_xs   as IQ2_S;
        IQ2_S    22 256  82   3 Table(&LEVELS_IQ2), Half(0), 0.125,     Odd(16),      false IQ4_NL iq2_s    as IQ2_S;
        IQ1_S    19 256  50   3 Table(&LEVELS_IQ1), Half(0), 0.125,     Odd(32),      false IQ4_NL iq1_s    as IQ1_S;
        IQ1_M    29 256  56   3 Table(&LEVELS_IQ1), HalfInNibbles(48), 0.125, Odd(16), false IQ4_NL iq1_m   as IQ1_M;
        TQ1_0    34 256  54   2 Offset(1),   Half(52), 1.0,             One,          false Q4_0   tq1_0    as TQ2_0;
        TQ2_0    35 256  66   2 Offset(1),   Half(64), 1.0,             One,          false Q4_0   tq2_0    as TQ2_0;
        MXFP4    39  32  17   4 Table(&LEVELS_FP4), Exponent(0), 1.0,   One,          true  MXFP4  mxfp4    as MXFP4;
    }
    numbers {
        I8       24 1;
        I16      25 2;
        I32      26 4;
        I64      27 8;
        F64      28 8;
    }
    names {
        Q8_1      9  32  36;
        Q8_K     15 256 292;
        NVFP4    40  64  36;
        Q1_0     41 128  18;
        Q2_0     42  64  18;
    }
}

/// Index of the row for each GGUF id; 255 if there is none.
static PLACES: [u8; 64] = {
    let mut places = [255; 64];
    let mut i = 0;
    while i < ROWS.len() {
        places[ROWS[i].id as usize] = i as u8;
        i += 1;
    }
    places
};

impl TensorType {
    /// All types, in the order of their GGUF ids.
    pub fn all() -> impl Iterator<Item = Self> {
        PLACES.iter().filter_map(|&place| ROWS.get(usize::from(place))).map(|row| row.ty)
    }

    #[inline]
    fn row(self) -> &'static Row {
        &ROWS[usize::from(PLACES[self as usize])]
    }

    /// The type with this GGUF id, or `None` for an id that the specification does not list.
    pub fn from_gguf_id(id: u32) -> Option<Self> {
        ROWS.iter().find(|row| row.id == id).map(|row| row.ty)
    }

    /// The type with this name (`Q4_K`, `F16`; letter case does not matter).
    pub fn from_name(name: &str) -> Option<Self> {
        ROWS.iter().find(|row| row.name.eq_ignore_ascii_case(name)).map(|row| row.ty)
    }

    /// The id of this type in GGUF files.
    pub fn gguf_id(self) -> u32 {
        self.row().id
    }

    /// The name that GGUF tools print, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Elements in one block.
    pub fn block_elems(self) -> usize {
        self.row().block_elems
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.row().block_bytes
    }

    /// The description of a quantized type that fewbit computes with; `None` for others.
    pub fn format(self) -> Option<&'static Format> {
        self.row().format
    }

    /// Bytes of a row of `n_cols` elements; `None` if the row is not a whole number of blocks, or on overflow.
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
        self.row().uses == Use::Weights
    }

    /// Whether [`decode`](crate::decode()) can read this type: all types that products can read, and the plain number
    /// types of small tensors.
    pub fn is_decodable(self) -> bool {
        self.row().uses != Use::Name
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
    use crate::format::{IntegerScales, Levels};

    #[test]
    fn types_are_found_by_id_and_name() {
        for row in ROWS {
            assert_eq!(row.ty.name(), row.name);
            assert_eq!(TensorType::from_gguf_id(row.id), Some(row.ty));
            assert_eq!(TensorType::from_name(&row.name.to_lowercase()), Some(row.ty));
        }
        assert_eq!(TensorType::from_gguf_id(4), None, "Q4_2 was removed from the format");
        assert_eq!(TensorType::all().count(), 35);
        assert!(TensorType::all().is_sorted_by_key(TensorType::gguf_id));
    }

    #[test]
    fn row_bytes_requires_whole_blocks() {
        assert_eq!(TensorType::Q4_1.row_bytes(576), Some(360));
        assert_eq!(TensorType::Q4_K.row_bytes(576), None);
        assert_eq!(TensorType::F64.row_bytes(usize::MAX), None);
    }

    /// Properties that code which reads the rows relies on.
    #[test]
    fn format_descriptions_are_consistent() {
        struct Check;
        impl ForQuantized for Check {
            type Out = ();
            fn call<T: Quantized>(self) {
                let (format, ty) = (T::FORMAT, T::TYPE);
                let twin = <T::Kernel as Quantized>::FORMAT;
                let kernel =
                    |f: &Format| (f.bits, f.levels, f.scale.has_min(), f.scale_factor.to_bits(), f.integer_scales);
                assert_eq!(kernel(&format), kernel(&twin), "{ty} runs the kernels of another type");
                let minimums = matches!(format.integer_scales, IntegerScales::Nibbles(_) | IntegerScales::SixBits(_));
                assert!(ty.block_elems() == 32 || minimums == format.scale.has_min(), "{ty}");
                assert!(matches!(format.levels, Levels::Offset(_)) || format.bits <= 4, "{ty}: 16 levels");
                if let Some(short) = format.for_short_rows {
                    assert!(short.block_elems() == 32 && short.format().is_some_and(|f| f.is_encodable), "{ty}");
                }
            }
        }
        assert_eq!(TensorType::all().filter_map(|ty| ty.dispatch(Check)).count(), 22);
    }
}
