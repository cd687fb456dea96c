//! The threads and the instruction set that products run on.

use std::sync::{Arc, Mutex, PoisonError};

use fewbit_kernels::{Activations, Cpu, Isa};

use crate::Error;

/// Kernels of one instruction set with their own threads: a handle that layers share.
///
/// Layers that are computed one after another should share one: products on the same kernels run in turn.
#[derive(Clone)]
pub struct Kernels {
    inner: Arc<Inner>,
}

struct Inner {
    cpu: Cpu,
    /// Quantized inputs of earlier products, whose memory later ones reuse.
    spare: Mutex<Vec<Activations>>,
}

/// The kernels that [`Kernels::shared`] has created.
static SHARED: Mutex<Option<Kernels>> = Mutex::new(None);

impl Kernels {
    /// Creates kernels on `n_threads` threads, including the calling thread, for the instruction set that `FEWBIT_ISA`
    /// names, or else the best one of this CPU.
    ///
    /// # Errors
    /// [`Error::Kernel`] if this CPU cannot run the instruction set in `FEWBIT_ISA`, or the system cannot start a
    /// thread.
    pub fn new(n_threads: usize) -> Result<Self, Error> {
        let cpu = Cpu::new(Isa::from_env()?, n_threads)?;
        Ok(Self { inner: Arc::new(Inner { cpu, spare: Mutex::default() }) })
    }

    /// The kernels of the process, created on the first call, on as many threads as candle uses (`RAYON_NUM_THREADS`,
    /// otherwise one per core).
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn shared() -> Result<Self, Error> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernels) = &*shared {
            return Ok(kernels.clone());
        }
        let kernels = Self::new(candle_core::utils::get_num_threads())?;
        Ok(shared.insert(kernels).clone())
    }

    /// Number of threads that products run on.
    pub fn n_threads(&self) -> usize {
        self.inner.cpu.pool().n_threads()
    }

    /// The name of the instruction set.
    pub fn isa(&self) -> &'static str {
        self.inner.cpu.isa().name()
    }

    pub(crate) fn cpu(&self) -> &Cpu {
        &self.inner.cpu
    }

    /// Runs `f` with a batch of inputs, which may reuse the memory of an earlier one.
    pub(crate) fn with_activations<R>(&self, f: impl FnOnce(&mut Activations) -> R) -> R {
        let spare = || self.inner.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let mut activations = spare().pop().unwrap_or_default();
        let result = f(&mut activations);
        spare().push(activations);
        result
    }
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernels").field("isa", &self.isa()).field("n_threads", &self.n_threads()).finish()
    }
}
