//! Which instruction set to use. It is chosen once, when a `Cpu` is created.

use crate::{Isa, KernelError};

/// The environment variable that forces an instruction set: `scalar`, `portable`, `sse2`, `neon`, `dotprod`, `i8mm`,
/// `avx2`, `avxvnni` or `avx512`.
pub const ISA_VARIABLE: &str = "FEWBIT_ISA";

impl Isa {
    /// The instruction set named by [`ISA_VARIABLE`], or [`best`](Self::best) if the variable is not set.
    ///
    /// # Errors
    /// [`KernelError::UnknownIsa`] if the variable names an unknown instruction set, [`KernelError::IsaUnavailable`] if
    /// this CPU cannot run it.
    pub fn from_env() -> Result<Self, KernelError> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.is_empty() => name.parse::<Self>()?.require(),
            _ => Ok(Self::best()),
        }
    }

    /// Returns `self` if this CPU can run it.
    ///
    /// # Errors
    /// [`KernelError::IsaUnavailable`] if it cannot.
    pub fn require(self) -> Result<Self, KernelError> {
        if self.is_available() {
            return Ok(self);
        }
        Err(KernelError::IsaUnavailable { isa: self, available: Self::available() })
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
