//! Device memory, which is memory of the host here, and what tests have in common.

use crate::cuda_shim::shim;
use fewbit_gpu::cuda::kernels::{Address, Form, Launch};
use fewbit_kernels::{Activations, Cpu, Isa};
use fewbit_quant::{ActivationKind, TensorType};

/// As device memory is aligned.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A buffer between lines that nobody may write.
pub(crate) struct Memory<T> {
    lines: Box<[std::cell::UnsafeCell<Line>]>,
    len: usize,
    of: std::marker::PhantomData<T>,
}

const GUARD: u8 = 0x5A;

impl<T: Copy> Memory<T> {
    /// A buffer of NaN, or of other bits that are no results.
    pub(crate) fn new(len: usize) -> Self {
        let n_lines = (len * size_of::<T>()).div_ceil(64) + 2;
        let lines = (0..n_lines).map(|_| std::cell::UnsafeCell::new(Line([0xFF; 64]))).collect();
        let mut memory = Self { lines, len, of: std::marker::PhantomData };
        memory.all_bytes(|i, byte, range| {
            if !range.contains(&i) {
                *byte = GUARD;
            }
        });
        memory
    }

    pub(crate) fn of(values: &[T]) -> Self {
        let memory = Self::new(values.len());
        // SAFETY: the buffer has room for these values, and nobody else uses it.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), memory.start(), values.len()) };
        memory
    }

    fn start(&self) -> *mut T {
        self.lines[1].get().cast()
    }

    pub(crate) fn address(&self) -> Address {
        self.start() as Address
    }

    pub(crate) fn get(&self) -> &[T] {
        // SAFETY: the buffer has this many elements, of types of which all bits are values; kernels have ended.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }

    fn all_bytes(&mut self, mut f: impl FnMut(usize, &mut u8, std::ops::Range<usize>)) {
        let range = 64..64 + self.len * size_of::<T>();
        let bytes = self.lines.iter_mut().flat_map(|line| &mut line.get_mut().0);
        bytes.enumerate().for_each(|(i, byte)| f(i, byte, range.clone()));
    }

    /// Panics if anything was written beside the buffer.
    pub(crate) fn check(&mut self) {
        self.all_bytes(|i, byte, range| assert!(range.contains(&i) || *byte == GUARD, "byte {i} beside a buffer"));
    }
}

/// The bytes of a kernel's parameters; `None` where the kernels cannot be compiled.
pub(crate) fn params_bytes(launch: &Launch) -> Option<u64> {
    Some(shim()?.params_bytes(launch))
}

/// Runs a kernel; `None` where the kernels cannot be compiled.
pub(crate) fn run<P: Copy>(launch: &Launch, params: &P) -> Option<()> {
    let shim = shim()?;
    assert_eq!(shim.params_bytes(launch), size_of::<P>() as u64, "{}", launch.name);
    let mut params = *params;
    // SAFETY: the parameters have the size that the kernel takes; tests put addresses of `Memory` into them.
    let result = unsafe { shim.launch(launch, &mut [(&raw mut params).cast()]) };
    result.expect("the launch is valid");
    Some(())
}

/// The scalar definitions.
pub(crate) fn cpu() -> Cpu {
    Cpu::new(Isa::Scalar, 1).expect("there is always a scalar one")
}

/// A small generator, so that failures repeat.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// Numbers between -scale and scale.
    pub(crate) fn floats(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| (self.next() as f32 / (1u64 << 30) as f32 - 1.0) * scale).collect()
    }

    /// Blocks of random bits, with scales that keep values around 0.1.
    pub(crate) fn blocks(&mut self, ty: TensorType, n_elems: usize) -> Vec<u8> {
        let mut bytes = vec![0u8; ty.row_bytes(n_elems).expect("whole blocks")];
        for block in bytes.chunks_exact_mut(ty.block_bytes()) {
            block.fill_with(|| self.next() as u8);
            let value = (self.next() % 2001) as f32 / 5000.0 - 0.2;
            match ty {
                TensorType::F32 => block.copy_from_slice(&value.to_le_bytes()),
                TensorType::F16 => block.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
                TensorType::BF16 => block.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
                _ => fewbit_quant::format::write_random_scales(ty, block, value.abs() + 0.01),
            }
        }
        bytes
    }
}

/// A form of some rows in all planes.
pub(crate) struct FormMemory {
    pub(crate) codes: Memory<i8>,
    pub(crate) scales: Memory<f32>,
    pub(crate) sums: Memory<i32>,
}

impl FormMemory {
    pub(crate) fn new(kind: ActivationKind, n_rows: usize, n_cols: usize) -> Self {
        let n = n_rows * n_cols;
        Self {
            codes: Memory::new(n),
            scales: Memory::new(n / kind.block_elems()),
            sums: Memory::new(n / kind.sum_elems()),
        }
    }

    pub(crate) fn form(&self) -> Form {
        Form { codes: self.codes.address(), scales: self.scales.address(), sums: self.sums.address() }
    }

    /// Compares with the definition of the form of `x`: `[n_rows][n_cols]` in each plane.
    pub(crate) fn check(&mut self, kind: ActivationKind, x: &[f32], planes: usize, what: &str) {
        let mut x = x.to_vec();
        let (block, sum) = (kind.block_elems(), kind.sum_elems());
        for plane in 0..planes {
            let at = plane * x.len();
            for (b, x) in x.chunks_exact_mut(block).enumerate() {
                let mut codes = vec![0i8; block];
                let d = define(x, &mut codes);
                let got = self.scales.get()[at / block + b];
                assert!(got.to_bits() == d.to_bits() || got.is_nan() && d.is_nan(), "{what}: scale {got} for {d}");
                assert!(self.codes.get()[at + b * block..][..block] == codes, "{what}: codes of block {b}");
                let sums: Vec<i32> = codes.chunks_exact(sum).map(|c| c.iter().map(|&c| i32::from(c)).sum()).collect();
                assert!(self.sums.get()[(at + b * block) / sum..][..block / sum] == sums, "{what}: sums of block {b}");
                x.iter_mut().zip(codes).for_each(|(x, code)| *x = (-d).mul_add(f32::from(code), *x));
            }
        }
        self.codes.check();
        self.scales.check();
        self.sums.check();
    }
}

/// The rule of `fewbit_quant::activation`.
fn define(x: &[f32], codes: &mut [i8]) -> f32 {
    if x.iter().any(|x| !x.is_finite()) {
        return f32::NAN;
    }
    let amax = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    if amax < fewbit_quant::activation::MIN_AMAX {
        return 0.0;
    }
    let inverse = 127.0 / amax;
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    amax / 127.0
}

/// Compares bits; two NaN are equal.
pub(crate) fn assert_bits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let is_equal = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        assert!(is_equal, "{what}: {got:e} for {want:e} as element {i}");
    }
}

/// Rows in the form that products with a type read, by the CPU.
pub(crate) fn activate(cpu: &Cpu, ty: TensorType, x: &[f32], n_cols: usize, planes: usize) -> Activations {
    let kinds = fewbit_kernels::ActivationKinds::of([ty]);
    let mut out = Activations::new();
    cpu.activate(x, n_cols, if planes == 2 { kinds.two_planes() } else { kinds }, &mut out);
    out
}
