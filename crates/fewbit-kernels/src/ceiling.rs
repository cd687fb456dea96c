//! The limits of the machine, which kernels are measured against.
//!
//! Both are measured with the threads of a [`Cpu`], in the same process and at about the same time as the kernels
//! compared with them; on shared machines they vary by tens of percent between runs.

use crate::aligned::AlignedBytes;
use crate::elementwise::multiversion;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::generic::Simd;
#[cfg(target_arch = "x86_64")]
use crate::isa::has_avx_vnni;
use crate::shared::SharedMut;
use crate::{Cpu, Isa, KernelError};
use std::hint::black_box;
use std::time::Instant;

/// Number of bytes that the bandwidth is measured over: more than any cache holds.
const READ_BYTES: usize = 512 << 20;

/// Each figure is the best of this many runs.
const RUNS: usize = 5;

multiversion! {
    /// Adds up 64-bit words, in lanes: the cheapest operation that needs every byte.
    pub(crate) fn sum_words(bytes: &[u8]) -> u64 {
        let mut lanes = [0u64; 16];
        for words in bytes.as_chunks::<128>().0 {
            for (lane, word) in lanes.iter_mut().zip(words.as_chunks::<8>().0) {
                *lane = lane.wrapping_add(u64::from_ne_bytes(*word));
            }
        }
        lanes.into_iter().fold(0, u64::wrapping_add)
    }
}

/// Memory read bandwidth in bytes per second: all threads read their own part of a large buffer.
///
/// # Errors
/// [`KernelError::OutOfMemory`] if the buffer of 512 MiB cannot be allocated.
pub fn read_bandwidth(cpu: &Cpu) -> Result<f64, KernelError> {
    let mut buffer = AlignedBytes::zeroed(READ_BYTES)?;
    let (pool, chunk) = (cpu.pool(), 1 << 20);
    // 256-bit loads already saturate memory, and the compiler makes gathers of this loop for AVX-512.
    let isa = cpu.isa().min(Isa::Avx2);
    let parts = SharedMut::new(&mut buffer);
    // Pages that were never written may all be backed by the same zero page.
    // SAFETY: chunks are handed out once and do not overlap.
    pool.for_chunks(READ_BYTES, chunk, |range, _| unsafe { parts.range(range) }.fill(1));
    let run = || {
        let start = Instant::now();
        pool.for_chunks(READ_BYTES, chunk, |range, _| {
            black_box(sum_words(isa, &buffer[range]));
        });
        READ_BYTES as f64 / start.elapsed().as_secs_f64()
    };
    Ok((0..RUNS).map(|_| run()).fold(0.0, f64::max))
}

/// Int8 multiply-adds per second of the inner instruction of the product kernels, on registers only, on all threads.
/// `None` for instruction sets without such an instruction.
pub fn int8_peak(cpu: &Cpu) -> Option<f64> {
    const STEPS: usize = 2_000_000;
    let kernel = peak_kernel(cpu.isa())?;
    let macs_per_step = kernel.1 * cpu.pool().n_threads();
    let run = || {
        let start = Instant::now();
        cpu.pool().run(&|_| {
            // SAFETY: a `Cpu` is made only with an `Isa` that `Isa::require` found on this CPU.
            unsafe { (kernel.0)(STEPS) }
        });
        (STEPS * macs_per_step) as f64 / start.elapsed().as_secs_f64()
    };
    Some((0..RUNS).map(|_| run()).fold(0.0, f64::max))
}

/// A function that runs a number of steps on one thread, and the multiply-adds of one step.
type PeakKernel = (unsafe fn(usize), usize);

/// Number of independent sums: enough to hide the latency, few enough to stay in registers.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const SUMS: usize = 12;

/// # Safety
/// The CPU has `S`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
unsafe fn peak<S: Simd>(steps: usize) {
    // SAFETY: the arrays are as long as a vector of bytes; the rest is the caller's.
    unsafe {
        let (w, x) = (S::load_b([1u8; 64].as_ptr()), S::load_b([1u8; 64].as_ptr()));
        let mut sums = [S::acc0(); SUMS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = if S::HAS_PAIRS { S::dot_pairs(*sum, w, x) } else { S::dot4(*sum, w, x) };
            }
        }
        let total = sums.into_iter().fold(S::i0(), |total, sum| S::add_i(total, S::widen(sum)));
        let mut out = [0.0f32; 16];
        S::store_f(out.as_mut_ptr(), S::to_f(total));
        black_box(out);
    }
}

#[cfg(target_arch = "x86_64")]
fn peak_kernel(isa: Isa) -> Option<PeakKernel> {
    use crate::arch::x86_64::{Avx2, Avx512, AvxVnni};

    #[target_feature(enable = "avx2,fma,f16c")]
    fn avx2(steps: usize) {
        // SAFETY: this function has the features.
        unsafe { peak::<Avx2>(steps) }
    }

    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn avx512(steps: usize) {
        // SAFETY: this function has the features.
        unsafe { peak::<Avx512>(steps) }
    }

    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    fn avx_vnni(steps: usize) {
        // SAFETY: this function has the features.
        unsafe { peak::<AvxVnni<false>>(steps) }
    }

    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512vnni")]
    fn avx_vnni_evex(steps: usize) {
        // SAFETY: this function has the features.
        unsafe { peak::<AvxVnni<true>>(steps) }
    }

    match isa {
        Isa::AvxVnni if has_avx_vnni() => Some((avx_vnni, SUMS * 4 * AvxVnni::<false>::LANES)),
        Isa::AvxVnni => Some((avx_vnni_evex, SUMS * 4 * AvxVnni::<true>::LANES)),
        Isa::Avx2 => Some((avx2, SUMS * 4 * Avx2::LANES)),
        Isa::Avx512 => Some((avx512, SUMS * 4 * Avx512::LANES)),
        _ => None,
    }
}

#[cfg(target_arch = "aarch64")]
fn peak_kernel(isa: Isa) -> Option<PeakKernel> {
    use crate::arch::aarch64::{DotProd, I8mm};

    #[target_feature(enable = "dotprod")]
    fn dotprod(steps: usize) {
        // SAFETY: this function has the feature.
        unsafe { peak::<DotProd>(steps) }
    }

    #[target_feature(enable = "dotprod,i8mm")]
    fn i8mm(steps: usize) {
        // SAFETY: this function has the features.
        unsafe { peak::<I8mm>(steps) }
    }

    match isa {
        Isa::DotProd => Some((dotprod, SUMS * 4 * DotProd::LANES)),
        Isa::I8mm => Some((i8mm, SUMS * 8 * I8mm::LANES)),
        _ => None,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn peak_kernel(_isa: Isa) -> Option<PeakKernel> {
    None
}
