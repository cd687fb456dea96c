//! A driver without a GPU: memory of this process, and kernels that run on the CPU at once (`cuda_shim`).
//!
//! It is stricter than a driver. New memory is full of NaN. Whatever is written beyond an allocation, used after it was
//! freed, or never freed fails the test. And it can be told to run out of memory, and to be lost.

use crate::cuda_shim::{Shim, shim};
use fewbit_gpu::cuda::CudaDevice;
use fewbit_gpu::cuda::driver::{DeviceInfo, Driver, Failure, Function, Graph, Launch};
use fewbit_gpu::cuda::kernels::{self, Address, Module};
use fewbit_model::DeviceMemory;
use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes before and after an allocation that nobody may write.
const GUARD: usize = 256;

/// What they contain, and what new memory does.
const GUARDED: u8 = 0xa5;
const NEW: u8 = 0xff;

pub(crate) struct FakeDriver {
    shim: &'static Shim,
    state: Mutex<State>,
}

struct State {
    allocations: BTreeMap<Address, Allocation>,
    /// Ranges that were freed, by their beginning. Their memory is not used again, so that old addresses are noticed.
    freed: BTreeMap<Address, Allocation>,
    free_bytes: u64,
    total_bytes: u64,
    functions: Vec<(Module, String)>,
    graphs: HashMap<usize, Vec<Owned>>,
    n_graphs: usize,
    counts: Counts,
    /// Launches until the device is lost.
    launches_left: usize,
    lost: Option<String>,
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) launches: usize,
    pub(crate) captures: usize,
    pub(crate) replays: usize,
}

struct Allocation {
    bytes: usize,
}

// A launch that was captured.
struct Owned {
    function: Function,
    grid: [u32; 3],
    block: u32,
    shared: u32,
    params: Vec<u64>,
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + 2 * GUARD, GUARD).expect("a size that was allocated")
}

impl State {
    fn check(&self) -> Result<(), Failure> {
        self.lost.clone().map_or(Ok(()), |why| Err(Failure::Other(why)))
    }

    /// Checks that a range lies in an allocation.
    fn check_range(&self, at: Address, bytes: u64) {
        let found = self.allocations.range(..=at).next_back();
        let is_within = found.is_some_and(|(start, a)| at + bytes <= start + a.bytes as u64);
        assert!(is_within, "{bytes} bytes at {at:#x} are not in an allocation");
    }

    /// Checks that nothing was written around an allocation.
    fn check_guards(address: Address, allocation: &Allocation) {
        let begin = address as usize - GUARD;
        for at in
            (begin..begin + GUARD).chain((begin + GUARD + allocation.bytes)..(begin + 2 * GUARD + allocation.bytes))
        {
            // SAFETY: the guards lie in the memory that `alloc` got for this allocation.
            let byte = unsafe { std::ptr::with_exposed_provenance::<u8>(at).read() };
            assert_eq!(
                byte, GUARDED,
                "something was written {at:#x}, beyond the {} bytes at {address:#x}",
                allocation.bytes
            );
        }
    }

    /// Checks that no parameter is an address in memory that was freed.
    fn check_params(&self, params: &[u64], name: &str) {
        for &word in params {
            let found = self.freed.range(..=word).next_back();
            let is_freed = found.is_some_and(|(start, a)| word < start + a.bytes as u64);
            assert!(!is_freed, "{name} is launched with {word:#x}, which was freed");
        }
    }
}

impl FakeDriver {
    /// A driver with this much memory; `None`, after a line on stderr, without a C++ compiler.
    pub(crate) fn new(total_bytes: u64) -> Option<Arc<Self>> {
        let state = State {
            allocations: BTreeMap::new(),
            freed: BTreeMap::new(),
            free_bytes: total_bytes,
            total_bytes,
            functions: Vec::new(),
            graphs: HashMap::new(),
            n_graphs: 0,
            counts: Counts::default(),
            launches_left: usize::MAX,
            lost: None,
        };
        Some(Arc::new(Self { shim: shim()?, state: Mutex::new(state) }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loses the device after so many launches.
    pub(crate) fn lose_after(&self, launches: usize) {
        self.lock().launches_left = launches;
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Bytes that are allocated.
    pub(crate) fn used_bytes(&self) -> u64 {
        let state = self.lock();
        state.total_bytes - state.free_bytes
    }

    fn run(&self, state: &mut State, launch: &Launch<'_>) -> Result<(), Failure> {
        state.check()?;
        if state.launches_left == 0 {
            state.lost = Some("CUDA_ERROR_LAUNCH_FAILED: a test".to_owned());
            return state.check();
        }
        state.launches_left -= 1;
        state.counts.launches += 1;
        let (module, name) = state.functions[launch.function.0].clone();
        state.check_params(launch.params, &name);
        let Launch { grid, block, shared, .. } = *launch;
        let described = kernels::Launch { module, name, grid, block, shared };
        let bytes = self.shim.params_bytes(&described);
        assert_eq!(bytes, 8 * launch.params.len() as u64, "parameters of {described:?}");
        // SAFETY: the parameters are as many bytes as the kernel's, checked above. Their addresses were allocated, and this
        // driver's lock keeps others from using them. That they are large enough is what the guards check afterwards.
        let done = unsafe { self.shim.launch(&described, &mut [launch.params.as_ptr().cast_mut().cast()]) };
        state.allocations.iter().for_each(|(address, allocation)| State::check_guards(*address, allocation));
        done.map_err(Failure::Other)
    }
}

impl Driver for FakeDriver {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new("cuda:0", "a GPU of the tests", (8, 0))
    }

    fn memory(&self) -> Result<(u64, u64), Failure> {
        let state = self.lock();
        state.check()?;
        Ok((state.free_bytes, state.total_bytes))
    }

    fn alloc(&self, bytes: u64) -> Result<Address, Failure> {
        let mut state = self.lock();
        state.check()?;
        state.free_bytes = state.free_bytes.checked_sub(bytes).ok_or(Failure::OutOfMemory)?;
        let allocation = Allocation { bytes: bytes as usize };
        // SAFETY: the size is not 0, because of the guards.
        let begin = unsafe { alloc(layout(allocation.bytes)) };
        assert!(!begin.is_null(), "no memory for a test");
        // SAFETY: as many bytes as were allocated just now.
        unsafe {
            begin.write_bytes(GUARDED, allocation.bytes + 2 * GUARD);
            begin.add(GUARD).write_bytes(NEW, allocation.bytes);
        }
        let address = (begin.expose_provenance() + GUARD) as Address;
        state.allocations.insert(address, allocation);
        Ok(address)
    }

    fn free(&self, address: Address) {
        let mut state = self.lock();
        let allocation = state.allocations.remove(&address).expect("an allocation that was not freed yet");
        State::check_guards(address, &allocation);
        state.free_bytes += allocation.bytes as u64;
        state.freed.insert(address, allocation);
    }

    fn write(&self, to: Address, bytes: &[u8]) -> Result<(), Failure> {
        let state = self.lock();
        state.check()?;
        state.check_range(to, bytes.len() as u64);
        let to = std::ptr::with_exposed_provenance_mut::<u8>(to as usize);
        // SAFETY: the range is in an allocation, checked above, and `bytes` is not.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn read(&self, from: Address, out: &mut [u8]) -> Result<(), Failure> {
        let state = self.lock();
        state.check()?;
        state.check_range(from, out.len() as u64);
        let from = std::ptr::with_exposed_provenance::<u8>(from as usize);
        // SAFETY: as in `write`.
        unsafe { from.copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    fn copy(&self, from: Address, to: Address, bytes: u64) -> Result<(), Failure> {
        let state = self.lock();
        state.check()?;
        state.check_range(from, bytes);
        state.check_range(to, bytes);
        assert!(from + bytes <= to || to + bytes <= from, "the ranges overlap");
        let from = std::ptr::with_exposed_provenance::<u8>(from as usize);
        // SAFETY: both ranges are in allocations and do not overlap, checked above.
        unsafe { from.copy_to_nonoverlapping(std::ptr::with_exposed_provenance_mut(to as usize), bytes as usize) };
        Ok(())
    }

    fn clear(&self, at: Address, bytes: u64) -> Result<(), Failure> {
        let state = self.lock();
        state.check()?;
        state.check_range(at, bytes);
        // SAFETY: the range is in an allocation, checked above.
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(at as usize).write_bytes(0, bytes as usize) };
        Ok(())
    }

    fn function(&self, module: Module, name: &str) -> Result<Function, Failure> {
        let mut state = self.lock();
        state.check()?;
        state.functions.push((module, name.to_owned()));
        Ok(Function(state.functions.len() - 1))
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), Failure> {
        self.run(&mut self.lock(), launch)
    }

    fn time(&self, launches: &[Launch<'_>]) -> Result<Vec<Duration>, Failure> {
        let mut state = self.lock();
        let timed = |launch| {
            let start = Instant::now();
            self.run(&mut state, launch).map(|()| start.elapsed())
        };
        launches.iter().map(timed).collect()
    }

    fn capture(&self, launches: &[Launch<'_>]) -> Result<Graph, Failure> {
        let mut state = self.lock();
        state.check()?;
        state.counts.captures += 1;
        let owned = |launch: &Launch<'_>| {
            let Launch { function, grid, block, shared, params } = *launch;
            Owned { function, grid, block, shared, params: params.to_vec() }
        };
        state.n_graphs += 1;
        let number = state.n_graphs;
        state.graphs.insert(number, launches.iter().map(owned).collect());
        Ok(Graph(number))
    }

    fn replay(&self, graph: Graph) -> Result<(), Failure> {
        let mut state = self.lock();
        state.check()?;
        state.counts.replays += 1;
        let launches = state.graphs.remove(&graph.0).expect("a graph that was not dropped");
        let result = launches.iter().try_for_each(|owned| {
            let Owned { function, grid, block, shared, ref params } = *owned;
            self.run(&mut state, &Launch { function, grid, block, shared, params })
        });
        state.graphs.insert(graph.0, launches);
        result
    }

    fn drop_graph(&self, graph: Graph) {
        self.lock().graphs.remove(&graph.0).expect("a graph that was not dropped yet");
    }

    fn wait(&self) -> Result<(), Failure> {
        self.lock().check()
    }
}

impl Drop for FakeDriver {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (address, allocation) in state.freed.iter().chain(&state.allocations) {
            let begin = std::ptr::with_exposed_provenance_mut::<u8>(*address as usize - GUARD);
            // SAFETY: allocated by `alloc` with this layout, and nothing has its address any longer.
            unsafe { dealloc(begin, layout(allocation.bytes)) };
        }
        if !std::thread::panicking() {
            assert!(state.allocations.is_empty(), "{} allocations are never freed", state.allocations.len());
            assert!(state.graphs.is_empty(), "{} graphs are never dropped", state.graphs.len());
        }
    }
}

/// A device of a driver with enough memory, and the driver.
pub(crate) fn device() -> Option<(Arc<CudaDevice>, Arc<FakeDriver>)> {
    let driver = FakeDriver::new(1 << 30)?;
    Some((Arc::new(CudaDevice::with_driver(driver.clone()).expect("a device that can be used")), driver))
}

/// What the driver says of its memory.
#[allow(dead_code)]
pub(crate) fn memory(driver: &FakeDriver) -> DeviceMemory {
    let (free, total) = driver.memory().expect("it was not lost");
    DeviceMemory::new(Some(free), Some(total))
}
