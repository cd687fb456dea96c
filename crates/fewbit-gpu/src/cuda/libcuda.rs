//! NVIDIA's driver, the library libcuda (nvcuda.dll on Windows), which is loaded when it is first asked for.
//!
//! A device is used through one stream, so that everything happens in the order in which it was asked for. Kernels are
//! PTX, the text that [`super::ptx`] has; the driver compiles a source file's when the first of its kernels is looked up,
//! and keeps what it compiled in a cache of its own.
#![allow(unsafe_code)]

use super::driver::{DeviceInfo, Driver, Failure, Function, Graph, Launch};
use super::kernels::{Address, Module};
use super::{OLDEST_DRIVER, ptx};
use crate::backend::lock;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use fewbit_model::{DeviceError, DeviceMemory};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

/// A device with a context, a stream, and the kernels that were compiled so far.
pub(super) struct Libcuda {
    info: DeviceInfo,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Where launches are captured, one after the other.
    captures: Mutex<Handle<sys::CUstream>>,
    modules: Mutex<Modules>,
    graphs: Mutex<HashMap<usize, Handle<sys::CUgraphExec>>>,
}

/// A handle of the driver, which any thread may use.
#[derive(Clone, Copy)]
struct Handle<T>(T);

// SAFETY: the driver's documentation lets any thread use its handles, if the context is current there; every method
// makes it so first.
unsafe impl<T> Send for Handle<T> {}

// SAFETY: as for `Handle`. The driver locks its own structures.
unsafe impl Send for Libcuda {}
// SAFETY: as above.
unsafe impl Sync for Libcuda {}

#[derive(Default)]
struct Modules {
    loaded: HashMap<Module, Handle<sys::CUmodule>>,
    functions: HashMap<(Module, String), Function>,
}

/// The shared memory that a block may have without being asked about it.
const USUAL_SHARED_BYTES: u32 = 48 << 10;

/// The driver's words for an error.
fn words(error: DriverError) -> String {
    let [name, text] =
        [error.error_name(), error.error_string()].map(|text| text.ok().map(|text| text.to_string_lossy()));
    match (name, text) {
        (Some(name), Some(text)) => format!("{name}: {text}"),
        _ => format!("CUDA error {}", error.0 as u32),
    }
}

fn failure(error: DriverError) -> Failure {
    match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Failure::OutOfMemory,
        _ => Failure::Other(words(error)),
    }
}

fn unavailable(why: impl Into<String>) -> DeviceError {
    DeviceError::Unavailable { why: why.into() }
}

/// The newest version of CUDA that the driver supports; it is initialized after that.
fn start() -> Result<u32, DeviceError> {
    static STARTED: OnceLock<Result<u32, DeviceError>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        if !cfg!(any(target_os = "linux", target_os = "windows")) {
            return Err(unavailable("cuda is not for this operating system"));
        }
        // SAFETY: loading a library runs its initialization; the one with this name is NVIDIA's driver.
        if !unsafe { sys::is_culib_present() } {
            return Err(unavailable(
                "no NVIDIA driver was found (libcuda.so.1, nvcuda.dll): install the GPU's driver, or use the CPU",
            ));
        }
        let mut version = 0;
        // SAFETY: the library is there, checked above; every version of it has this function, which may be called before
        // everything else and writes one integer.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|error| unavailable(words(error)))?;
        let version = version.unsigned_abs();
        if version < OLDEST_DRIVER {
            return Err(too_old(version));
        }
        match result::init() {
            Ok(()) => Ok(version),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Err(unavailable("the NVIDIA driver finds no GPU")),
            Err(error) => Err(unavailable(format!("the NVIDIA driver does not start: {}", words(error)))),
        }
    });
    started.clone()
}

/// The error for a driver whose version is too low for the PTX of this crate.
pub(super) fn too_old(version: u32) -> DeviceError {
    let text = |version: u32| format!("{}.{}", version / 1000, version % 1000 / 10);
    unavailable(format!(
        "the NVIDIA driver supports CUDA {}; the kernels need {} (driver 525 or newer): update the driver, or use \
         --device vulkan or the CPU",
        text(version),
        text(OLDEST_DRIVER)
    ))
}

/// All devices, with what is free of their memory where a context can be made to ask.
pub(super) fn devices() -> Result<Vec<DeviceInfo>, DeviceError> {
    let version = start()?;
    let n = result::device::get_count().map_err(|error| unavailable(words(error)))?;
    if n == 0 {
        return Err(unavailable("the NVIDIA driver finds no GPU"));
    }
    (0..n)
        .map(|index| {
            let (device, mut info) = describe(index, version).map_err(|error| unavailable(words(error)))?;
            // SAFETY: `device` was returned by the driver just now; the context is given back below.
            if info.check().is_ok() && unsafe { result::primary_ctx::retain(device) }.and_then(set_current).is_ok() {
                if let Ok((free, total)) = result::mem_get_info() {
                    info.memory = DeviceMemory::new(Some(free as u64), Some(total as u64));
                }
                // SAFETY: retained just above.
                let _ = unsafe { result::primary_ctx::release(device) };
            }
            Ok(info)
        })
        .collect()
}

fn set_current(context: sys::CUcontext) -> Result<(), DriverError> {
    // SAFETY: a context that the caller has retained.
    unsafe { result::ctx::set_current(context) }
}

/// What the driver says of a device without a context.
fn describe(index: i32, driver_version: u32) -> Result<(sys::CUdevice, DeviceInfo), DriverError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let device = result::device::get(index)?;
    // SAFETY: `device` was returned by the driver just now, also below.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) }.map(i32::unsigned_abs);
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let is_integrated = attribute(Attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED)? != 0;
    // SAFETY: as above.
    let total = unsafe { result::device::total_mem(device) }? as u64;
    let memory = DeviceMemory::new(None, Some(total));
    let (name, adapter) = (format!("cuda:{index}"), result::device::get_name(device)?);
    Ok((device, DeviceInfo { name, adapter, driver_version, capability: (major, minor), memory, is_integrated }))
}

impl Libcuda {
    /// Opens the device with this number.
    pub(super) fn open(index: usize) -> Result<Self, DeviceError> {
        let version = start()?;
        let failed = |error| unavailable(words(error));
        let (device, info) = describe(index as i32, version).map_err(failed)?;
        info.check()?;
        // SAFETY: `device` was returned by the driver; the context is released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed)?;
        let open = || -> Result<_, DriverError> {
            set_current(context)?;
            let create = || result::stream::create(result::stream::StreamKind::NonBlocking);
            Ok((create()?, create()?))
        };
        match open() {
            Ok((stream, captures)) => Ok(Self {
                info,
                device,
                context,
                stream,
                captures: Mutex::new(Handle(captures)),
                modules: Mutex::default(),
                graphs: Mutex::default(),
            }),
            Err(error) => {
                // SAFETY: retained above.
                let _ = unsafe { result::primary_ctx::release(device) };
                Err(unavailable(words(error)))
            }
        }
    }

    /// Makes the context current on this thread, and calls the driver.
    fn call<T>(&self, f: impl FnOnce() -> Result<T, DriverError>) -> Result<T, Failure> {
        set_current(self.context).and_then(|()| f()).map_err(failure)
    }

    /// Launches a kernel on a stream of this device, whose context is current.
    fn launch_on(&self, stream: sys::CUstream, launch: &Launch<'_>) -> Result<(), DriverError> {
        let function = launch.function.0 as sys::CUfunction;
        if launch.shared > USUAL_SHARED_BYTES {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: `function` is one that `function` returned, and its module lives as long as `self`.
            unsafe { result::function::set_function_attribute(function, attribute, launch.shared as i32) }?;
        }
        let args: &mut [*mut c_void] = &mut [launch.params.as_ptr().cast_mut().cast()];
        let [x, y, z] = launch.grid;
        // SAFETY: `function` as above. The driver reads the argument before it returns, as many bytes as the kernel declares: a
        // struct of `super::kernels`, whose sizes a test compares with the sources.
        unsafe { result::launch_kernel(function, (x, y, z), (launch.block, 1, 1), launch.shared, stream, args) }
    }
}

impl Driver for Libcuda {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn memory(&self) -> Result<(u64, u64), Failure> {
        self.call(result::mem_get_info).map(|(free, total)| (free as u64, total as u64))
    }

    fn alloc(&self, bytes: u64) -> Result<Address, Failure> {
        // SAFETY: what is allocated has any content; it is only read after something was written there.
        self.call(|| unsafe { result::malloc_sync(bytes.max(1) as usize) })
    }

    fn free(&self, address: Address) {
        // SAFETY: an address that `alloc` returned, which the caller no longer uses. The driver waits for what was launched.
        // A failure means that the device is lost, and with it the memory.
        let _ = self.call(|| unsafe { result::free_sync(address) });
    }

    fn write(&self, to: Address, bytes: &[u8]) -> Result<(), Failure> {
        // SAFETY: the range was allocated, which `DeviceMemory` checks. The bytes are pageable memory, which the driver has
        // copied when it returns.
        self.call(|| unsafe { result::memcpy_htod_async(to, bytes, self.stream) })
    }

    fn read(&self, from: Address, out: &mut [u8]) -> Result<(), Failure> {
        self.call(|| {
            // SAFETY: as in `write`; and the stream is waited for, so `out` is written before this returns.
            unsafe { result::memcpy_dtoh_async(out, from, self.stream) }?;
            // SAFETY: the stream lives as long as `self`.
            unsafe { result::stream::synchronize(self.stream) }
        })
    }

    fn copy(&self, from: Address, to: Address, bytes: u64) -> Result<(), Failure> {
        // SAFETY: both ranges were allocated on this device.
        self.call(|| unsafe { result::memcpy_dtod_async(to, from, bytes as usize, self.stream) })
    }

    fn clear(&self, at: Address, bytes: u64) -> Result<(), Failure> {
        // SAFETY: the range was allocated on this device, and zero bytes mean zero in everything that is stored there.
        self.call(|| unsafe { result::memset_d8_async(at, 0, bytes as usize, self.stream) })
    }

    fn function(&self, module: Module, name: &str) -> Result<Function, Failure> {
        let mut modules = lock(&self.modules);
        let key = (module, name.to_owned());
        if let Some(function) = modules.functions.get(&key) {
            return Ok(*function);
        }
        let no_kernel = || Failure::Other(format!("there is no kernel {name} in {}", module.name()));
        let loaded = match modules.loaded.get(&module) {
            Some(loaded) => *loaded,
            None => {
                let text = ptx::of(module, self.info.capability).ok_or_else(no_kernel)?;
                let text = CString::new(text).map_err(|_| no_kernel())?;
                // SAFETY: a text that ends with 0, and lives until the call returns.
                let loaded = Handle(self.call(|| unsafe { result::module::load_data(text.as_ptr().cast()) })?);
                modules.loaded.insert(module, loaded);
                loaded
            }
        };
        let symbol = CString::new(name).map_err(|_| no_kernel())?;
        // SAFETY: modules are unloaded when `self` is dropped.
        let function = self.call(|| unsafe { result::module::get_function(loaded.0, symbol) })?;
        let function = Function(function as usize);
        modules.functions.insert(key, function);
        Ok(function)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), Failure> {
        self.call(|| self.launch_on(self.stream, launch))
    }

    fn time(&self, launches: &[Launch<'_>]) -> Result<Vec<Duration>, Failure> {
        self.call(|| {
            // One before the first launch, and one after each.
            let events = Events::new(launches.len() + 1)?;
            for (i, event) in events.0.iter().enumerate() {
                if let Some(before) = i.checked_sub(1) {
                    self.launch_on(self.stream, &launches[before])?;
                }
                // SAFETY: the event was created just now, and the stream lives as long as `self`.
                unsafe { result::event::record(*event, self.stream) }?;
            }
            // SAFETY: the stream lives as long as `self`.
            unsafe { result::stream::synchronize(self.stream) }?;
            // SAFETY: both events were recorded on one stream, which has passed them, and are destroyed below.
            let elapsed = |pair: &[sys::CUevent]| unsafe { result::event::elapsed(pair[0], pair[1]) };
            let milliseconds: Result<Vec<f32>, _> = events.0.windows(2).map(elapsed).collect();
            Ok(milliseconds?.into_iter().map(|ms| Duration::from_secs_f32(ms.max(0.0) * 1e-3)).collect())
        })
    }

    fn capture(&self, launches: &[Launch<'_>]) -> Result<Graph, Failure> {
        let stream = lock(&self.captures);
        let executable = self.call(|| {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            // SAFETY: the stream lives as long as `self`, and only one thread captures at a time.
            unsafe { result::stream::begin_capture(stream.0, mode) }?;
            let launched = launches.iter().try_for_each(|launch| self.launch_on(stream.0, launch));
            // SAFETY: as above; the capture is ended also if a launch failed.
            let graph = unsafe { result::stream::end_capture(stream.0) };
            launched?;
            let graph = graph?;
            // SAFETY: the graph was returned just now, and is not used after it was destroyed.
            let executable = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
            // SAFETY: as above.
            unsafe { result::graph::destroy(graph) }?;
            executable
        })?;
        let number = executable as usize;
        lock(&self.graphs).insert(number, Handle(executable));
        Ok(Graph(number))
    }

    fn replay(&self, graph: Graph) -> Result<(), Failure> {
        let executable = lock(&self.graphs).get(&graph.0).copied();
        let executable = executable.ok_or_else(|| Failure::Other("a graph that was dropped".to_owned()))?;
        // SAFETY: it is in the map, so it was not destroyed.
        self.call(|| unsafe { result::graph::launch(executable.0, self.stream) })
    }

    fn drop_graph(&self, graph: Graph) {
        if let Some(executable) = lock(&self.graphs).remove(&graph.0) {
            // SAFETY: it was in the map, where it no longer is. The driver destroys it when it is no longer running.
            let _ = self.call(|| unsafe { result::graph::exec_destroy(executable.0) });
        }
    }

    fn wait(&self) -> Result<(), Failure> {
        // SAFETY: the stream lives as long as `self`.
        self.call(|| unsafe { result::stream::synchronize(self.stream) })
    }
}

/// Events, which are destroyed with it.
struct Events(Vec<sys::CUevent>);

impl Events {
    fn new(n: usize) -> Result<Self, DriverError> {
        let mut events = Self(Vec::with_capacity(n));
        for _ in 0..n {
            events.0.push(result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?);
        }
        Ok(events)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        for event in self.0.drain(..) {
            // SAFETY: created by `new`, and destroyed once. It fails only on a lost device.
            let _ = unsafe { result::event::destroy(event) };
        }
    }
}

impl Drop for Libcuda {
    fn drop(&mut self) {
        // On a lost device all of this fails, and there is nothing left to give back.
        let _ = set_current(self.context);
        for (_, executable) in lock(&self.graphs).drain() {
            // SAFETY: each handle was made by this object, and is destroyed once; also below.
            let _ = unsafe { result::graph::exec_destroy(executable.0) };
        }
        for (_, module) in lock(&self.modules).loaded.drain() {
            // SAFETY: as above.
            let _ = unsafe { result::module::unload(module.0) };
        }
        for stream in [self.stream, lock(&self.captures).0] {
            // SAFETY: as above.
            let _ = unsafe { result::stream::destroy(stream) };
        }
        // SAFETY: retained when the device was opened.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}
