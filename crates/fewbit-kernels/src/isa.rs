//! The instruction sets for which there are kernels, and which of them this CPU can run. See `choice.rs` for which one
//! is used.

/// An implementation of the kernels. All of them give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// The scalar definitions, on weights as the file stores them. Slow; the reference in tests.
    Scalar,
    /// Plain Rust that the compiler vectorizes as well as it can, for CPUs without an implementation below.
    Portable,
    /// SSE2, which every x86-64 CPU has.
    Sse2,
    /// NEON, which every aarch64 CPU has.
    Neon,
    /// As `Neon`, with dot products of bytes (FEAT_DotProd): all Apple M, Cortex-A75 and Neoverse N1 on.
    DotProd,
    /// As `DotProd`, with products of 2 x 8 and 8 x 2 bytes (FEAT_I8MM): Apple M2, Neoverse V1 and N2 on.
    I8mm,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// As `Avx2`, with AVX-VNNI or with the same instructions from AVX-512 (VL and VNNI), on 256-bit vectors.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
}

impl Isa {
    /// All instruction sets that this version knows, slowest first.
    pub(crate) const ALL: [Self; 9] = [
        Self::Scalar,
        Self::Portable,
        Self::Sse2,
        Self::Neon,
        Self::DotProd,
        Self::I8mm,
        Self::Avx2,
        Self::AvxVnni,
        Self::Avx512,
    ];

    /// Every instruction set that this CPU can run, slowest first.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this CPU can run it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar | Self::Portable => true,
            Self::Sse2 => cfg!(target_arch = "x86_64"),
            Self::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "aarch64")]
            Self::DotProd => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::I8mm => Self::DotProd.is_available() && std::arch::is_aarch64_feature_detected!("i8mm"),
            #[cfg(not(target_arch = "aarch64"))]
            Self::DotProd | Self::I8mm => false,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => {
                let evex = is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512vnni");
                Self::Avx2.is_available() && (has_avx_vnni() || evex)
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The fastest instruction set that this CPU can run.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }

    /// The name to use in [`ISA_VARIABLE`](crate::ISA_VARIABLE).
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Portable => "portable",
            Self::Sse2 => "sse2",
            Self::Neon => "neon",
            Self::DotProd => "dotprod",
            Self::I8mm => "i8mm",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512 => "avx512",
        }
    }
}

/// Whether [`Isa::AvxVnni`] runs in the encoding of AVX-VNNI; otherwise it runs in that of AVX-512.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx_vnni() -> bool {
    is_x86_feature_detected!("avxvnni")
}

/// Whether this is an Intel CPU. Intel cores with AVX-512 start two 512-bit products per cycle; a tile of one panel,
/// with one load per product, would leave them waiting for loads.
#[cfg(target_arch = "x86_64")]
pub(crate) fn is_intel() -> bool {
    // Evaluated once: under virtualization CPUID is handled by the host, which takes about 10 µs.
    static IS_INTEL: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        let id = std::arch::x86_64::__cpuid(0);
        [id.ebx, id.edx, id.ecx] == [*b"Genu", *b"ineI", *b"ntel"].map(u32::from_le_bytes)
    });
    *IS_INTEL
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
