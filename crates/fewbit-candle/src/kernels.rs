//! The threads and the instruction set that products run on.

use std::sync::{Arc, Mutex, PoisonError};

use fewbit_kernels::{Activations, Cpu, Isa};

use crate::Error;

/// Kernels of one instruction set, with threads of their own: a handle that layers share.
///
/// Layers that are computed one after another should share one: products of several threads on the same kernels take
/// turns.
#[derive(Clone)]
pub struct Kernels {
    inner: Arc<Inner>,
}

struct Inner {
    cpu: Cpu,
    /// Quantized inputs of earlier products, whose memory the next ones use.
    spare: Mutex<Vec<Activations>>,
}

/// Those that [`Kernels::shared`] has made.
static SHARED: Mutex<Option<Kernels>> = Mutex::new(None);

impl Kernels {
    /// Kernels on `n_threads` threads, the caller's included, for the instruction set that `FEWBIT_ISA` names, else the
    /// best of this CPU.
    ///
    /// # Errors
    /// [`Error::Kernel`] if `FEWBIT_ISA` names what this CPU does not run, or the system gives no thread.
    pub fn new(n_threads: usize) -> Result<Self, Error> {
        let cpu = Cpu::new(Isa::from_env()?, n_threads)?;
        Ok(Self { inner: Arc::new(Inner { cpu, spare: Mutex::default() }) })
    }

    /// The kernels of the process, made at the first call, on as many threads as candle uses (`RAYON_NUM_THREADS`, else
    /// one for each core).
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

    /// Threads that products run on.
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

    /// Runs `f` with a batch of inputs that may hold the memory of an earlier one.
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
