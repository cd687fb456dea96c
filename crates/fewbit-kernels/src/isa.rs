//! Which instruction set to use, decided once when a `Cpu` is made.

use crate::KernelError;

/// The environment variable that forces an instruction set: `scalar`, `portable`, `sse2`, `neon`, `avx2`,
/// `avxvnni` or `avx512`.
pub const ISA_VARIABLE: &str = "FEWBIT_ISA";

/// An implementation of the kernels. All of them give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// The scalar definitions, on weights as the file stores them. Slow: the reference in tests.
    Scalar,
    /// Plain Rust that compilers turn into vector instructions as well as they can: for CPUs of no family below.
    Portable,
    /// Every x86-64.
    Sse2,
    /// Every aarch64.
    Neon,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// As `Avx2`, with AVX-VNNI, or what is the same: AVX-512 VL with VNNI, on vectors of 256 bits.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
}

impl Isa {
    /// All that this version knows, slowest first.
    const ALL: [Self; 7] =
        [Self::Scalar, Self::Portable, Self::Sse2, Self::Neon, Self::Avx2, Self::AvxVnni, Self::Avx512];

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

    /// The fastest one that this CPU can run.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }

    /// What [`ISA_VARIABLE`] asks for, else [`best`](Self::best).
    ///
    /// # Errors
    /// [`KernelError::UnknownIsa`] or [`KernelError::IsaUnavailable`] if the variable names something that
    /// does not exist or that this CPU cannot run.
    pub fn from_env() -> Result<Self, KernelError> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.is_empty() => name.parse::<Self>()?.require(),
            _ => Ok(Self::best()),
        }
    }

    /// `self`, if this CPU can run it.
    ///
    /// # Errors
    /// [`KernelError::IsaUnavailable`] if it cannot.
    pub fn require(self) -> Result<Self, KernelError> {
        if self.is_available() {
            return Ok(self);
        }
        Err(KernelError::IsaUnavailable { isa: self, available: Self::available() })
    }

    /// The name that [`ISA_VARIABLE`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Portable => "portable",
            Self::Sse2 => "sse2",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512 => "avx512",
        }
    }
}

/// Whether [`Isa::AvxVnni`] is run in the encoding of AVX-VNNI; if not, in that of AVX-512.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx_vnni() -> bool {
    is_x86_feature_detected!("avxvnni")
}

/// Whether the CPU is Intel's: its cores with AVX-512 start two products of 512 bits per cycle, and then one panel's
/// tile, with a load for each product, keeps them waiting for loads.
#[cfg(target_arch = "x86_64")]
pub(crate) fn is_intel() -> bool {
    // Asked once: a virtual machine asks its host, which takes some 10 µs.
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

impl std::str::FromStr for Isa {
    type Err = KernelError;

    fn from_str(name: &str) -> Result<Self, KernelError> {
        Self::ALL
            .into_iter()
            .find(|isa| isa.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| KernelError::UnknownIsa { name: name.to_owned() })
    }
}
