//! The device that a model runs on, by name: `cpu`, `cuda`, `vulkan:0`, `metal`; and the list of available devices.
//!
//! A device that was named and cannot be used is an error, never a silent fallback. `auto` is an NVIDIA GPU, whose results are
//! the CPU's bit for bit, if there is one that the model runs on, and else the CPU; it never is a device through Vulkan or
//! Metal, whose results are only near the CPU's. On a GPU, as many layers are placed as its free memory has room for, by
//! an estimate; a number that was asked for and does not fit is refused before anything is loaded.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use fewbit_model::{
    Decoder, Device, DeviceError, DeviceMemory, LoadOptions, ModelConfig, ModelError, PartEstimates, Placement,
    Quantized, WeightSource,
};

use crate::error::{Error, ErrorKind};

/// The environment variable with the device of models that are loaded without
/// [`ModelBuilder::device`](crate::ModelBuilder::device).
pub const DEVICE_VARIABLE: &str = "FEWBIT_DEVICE";

/// The environment variable with the most memory to use of a GPU, such as `6 GiB`, for models that are loaded without
/// [`ModelBuilder::gpu_memory`](crate::ModelBuilder::gpu_memory).
pub const GPU_MEMORY_VARIABLE: &str = "FEWBIT_GPU_MEMORY";

/// What automatic placement leaves free on a GPU for other programs, unless the memory to use was given: this much, or
/// an eighth of what is free if that is less.
const MARGIN_BYTES: u64 = 1 << 30;

/// Where `auto` says what it chose.
const AUTO: &str = "fewbit::device::auto";

/// The device that a model runs on. Written `auto`, `cpu`, `cuda`, `cuda:1`, `vulkan`, `vulkan:1`, `metal`, `metal:0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceName {
    /// An NVIDIA GPU if there is one that the model runs on, with as many layers as fit, and else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU with this number (see `fewbit devices`), or the first one that can be used.
    Cuda(Option<usize>),
    /// The Vulkan device with this number (see `fewbit devices`), or the best one that is not emulated on the CPU.
    Vulkan(Option<usize>),
    /// The Metal device with this number, or the best one.
    Metal(Option<usize>),
}

/// A string that is not the name of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a device: choose auto, cuda[:N], vulkan[:N], metal[:N], or cpu, which always works")]
pub struct DeviceNameError {
    /// The name.
    pub name: String,
}

impl FromStr for DeviceName {
    type Err = DeviceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || DeviceNameError { name: text.to_owned() };
        let (kind, index) = match text.split_once(':') {
            Some((kind, index)) => (kind, Some(index.parse::<usize>().map_err(|_| error())?)),
            None => (text, None),
        };
        match (kind.to_ascii_lowercase().as_str(), index) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("cuda", index) => Ok(Self::Cuda(index)),
            ("vulkan", index) => Ok(Self::Vulkan(index)),
            ("metal", index) => Ok(Self::Metal(index)),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Cpu => f.pad("cpu"),
            Self::Cuda(None) => f.pad("cuda"),
            Self::Vulkan(None) => f.pad("vulkan"),
            Self::Metal(None) => f.pad("metal"),
            Self::Cuda(Some(i)) => f.pad(&format!("cuda:{i}")),
            Self::Vulkan(Some(i)) => f.pad(&format!("vulkan:{i}")),
            Self::Metal(Some(i)) => f.pad(&format!("metal:{i}")),
        }
    }
}

/// A device, or the reason why a kind of device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceStatus {
    /// A name that [`DeviceName`] parses, such as `cpu` or `vulkan:0`; only the kind if there is no such device.
    pub name: String,
    /// The hardware and its driver; for the CPU, the hardware and its instruction set.
    pub description: String,
    /// Its memory, as far as it is known. Of the CPU, what the operating system has available.
    pub memory: DeviceMemory,
    /// Whether the device is emulated in software on the CPU; such a device is used only if it is named.
    pub is_software: bool,
    /// Why it cannot be used; `None` if it can.
    pub unusable: Option<String>,
}

/// All devices of this computer, and for each kind that cannot be used the reason.
pub fn devices() -> Vec<DeviceStatus> {
    let isa = fewbit_model::Isa::best();
    let cpu = DeviceStatus {
        name: "cpu".to_owned(),
        description: format!("the CPU ({isa})"),
        memory: DeviceMemory::new(fewbit_model::available_bytes(), None),
        is_software: false,
        unusable: None,
    };
    [vec![cpu], gpus::of("cuda"), gpus::of("vulkan"), gpus::of("metal")].concat()
}

/// The requested device, or the one that the environment names.
fn chosen(asked: Option<DeviceName>) -> Result<DeviceName, Error> {
    let name = match asked {
        Some(name) => Ok(name),
        None => match std::env::var(DEVICE_VARIABLE) {
            Ok(name) if !name.is_empty() => name.parse(),
            _ => Ok(DeviceName::Auto),
        },
    };
    name.map_err(|error: DeviceNameError| {
        let why = format!("{DEVICE_VARIABLE}: {error}");
        Error::new(ErrorKind::Device { device: error.name }, DeviceError::Unavailable { why })
    })
}

/// Where the layers of a model are to be. For code that loads a [`Decoder`](crate::expert::engine::Decoder) itself;
/// [`ModelBuilder`](crate::ModelBuilder) has the same settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceOptions {
    /// The device; by default the one that [`DEVICE_VARIABLE`] names, or else [`DeviceName::Auto`].
    pub device: Option<DeviceName>,
    /// How many layers are on the GPU, counted from the last one; by default as many as fit.
    pub gpu_layers: Option<usize>,
    /// The experts of this many layers, from the first on, stay on the CPU; by default none.
    pub cpu_experts: Option<usize>,
    /// The most bytes to use of the GPU's memory; by default what [`GPU_MEMORY_VARIABLE`] says, or else what is free.
    pub gpu_memory: Option<u64>,
}

impl DeviceOptions {
    /// The default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns an error if the device cannot be used. [`place`](Self::place) does so too, when there is a model.
    ///
    /// # Errors
    /// [`ErrorKind::Device`].
    pub fn check(&self) -> Result<(), Error> {
        let name = chosen(self.device)?;
        match self.layers_on(name, usize::MAX)? {
            Some(0) => Ok(()),
            _ => gpus::open(name, None).map(drop).map_err(|error| unusable(name, error)),
        }
    }

    /// The number of layers on the GPU, if it is known without the model; an error if there cannot be so many.
    fn layers_on(&self, name: DeviceName, n_layers: usize) -> Result<Option<usize>, Error> {
        let is_gpu = !matches!(name, DeviceName::Auto | DeviceName::Cpu);
        match self.gpu_layers {
            Some(asked) if asked > n_layers => Err(ErrorKind::GpuLayers { asked, n_layers }.into()),
            Some(1..) if !is_gpu => {
                let why =
                    "it is not a GPU, so no layers can be placed on one: choose a GPU that `fewbit devices` lists";
                Err(unusable(name, DeviceError::Unavailable { why: why.to_owned() }))
            }
            None if !is_gpu => Ok(Some(0)),
            asked => Ok(asked),
        }
    }

    /// Places the layers of a model: the last ones on a GPU, together with the output matrix, the others on the CPU.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if the device cannot be used, has no memory for a single layer, or is the CPU although
    /// `gpu_layers` is above 0; [`ErrorKind::GpuLayers`] if that is more than the model has; those of reading the
    /// model's configuration.
    pub fn place(&self, source: &dyn WeightSource, options: &LoadOptions) -> Result<Placement, Error> {
        let (mut name, config) = (chosen(self.device)?, source.config().map_err(ModelError::from)?);
        if name == DeviceName::Auto {
            match self.gpu_layers {
                None => return Ok(self.automatic(&config, source, options)),
                // They were asked for, so they are an error where there is no such GPU.
                Some(1..) if gpus::open(BEST, None).is_ok() => name = BEST,
                Some(_) => {}
            }
        }
        self.place_on(name, &config, source, options).map(|(placement, _)| placement)
    }

    /// Where layers are if nobody said anything: on an NVIDIA GPU if all is well there, and else on the CPU.
    fn automatic(&self, config: &ModelConfig, source: &dyn WeightSource, options: &LoadOptions) -> Placement {
        match (self.place_on(BEST, config, source, options), config.only_on_cpu()) {
            (Ok((placement, device)), None) => {
                tracing::info!(target: AUTO, "computing on {device}, with the CPU's results (--device cpu to compute there)");
                placement
            }
            (Ok((_, device)), Some(what)) => {
                tracing::info!(target: AUTO, "computing on the CPU: {device} cannot run {what}");
                Placement::new()
            }
            (Err(error), _) => {
                // No such GPU is the usual case, about which nobody needs to hear.
                match error.cause() {
                    Some(DeviceError::Unavailable { why }) => {
                        tracing::debug!(target: AUTO, "computing on the CPU: {why}")
                    }
                    _ => tracing::info!(target: AUTO, "computing on the CPU: {error:#}"),
                }
                Placement::new()
            }
        }
    }

    /// Whether nobody named the GPU that a model is placed on: see [`load`].
    pub(crate) fn is_automatic(&self) -> bool {
        self.gpu_layers.is_none() && chosen(self.device).is_ok_and(|name| name == DeviceName::Auto)
    }

    /// Places layers on this device. Also returns the name of a GPU to display, or that of the CPU.
    fn place_on(
        &self,
        name: DeviceName,
        config: &ModelConfig,
        source: &dyn WeightSource,
        options: &LoadOptions,
    ) -> Result<(Placement, String), Error> {
        let n_layers = config.n_layers();
        let asked = self.layers_on(name, n_layers)?;
        if asked == Some(0) {
            return Ok((Placement::new(), name.to_string()));
        }
        let limit = match self.gpu_memory {
            Some(bytes) => Some(bytes),
            None => memory_of_environment(name)?,
        };
        let device = gpus::open(name, limit).map_err(|error| unusable(name, error))?;
        let cpu_experts = self.cpu_experts.unwrap_or(0);
        if cpu_experts > 0 && config.experts.is_none() {
            tracing::warn!(target: "fewbit::device", "the model has no experts that could stay on the CPU");
        }
        let layers = match asked {
            Some(layers) => layers,
            None => fitting(name, &*device, (limit, cpu_experts), source, options)?,
        };
        let shown = device.name();
        tracing::info!(device = shown, layers, n_layers, "placing layers on a GPU");
        let placement = Placement::new().cpu(n_layers - layers).device(layers, Arc::clone(&device)).head(device);
        Ok((placement.cpu_experts(cpu_experts), shown))
    }
}

/// Loads a model onto the devices of `options`, and onto the CPU instead if a GPU that nobody named fails.
pub(crate) fn load(
    source: &dyn WeightSource,
    options: &mut LoadOptions,
    is_automatic: bool,
) -> Result<Decoder, ModelError> {
    match Decoder::load(source, options) {
        Err(ModelError::Device { device, source: error }) if is_automatic => {
            tracing::warn!(target: "fewbit::device", "computing on the CPU: {device}: {error}");
            options.placement = Placement::new();
            Decoder::load(source, options)
        }
        loaded => loaded,
    }
}

/// The GPU that `auto` looks for.
const BEST: DeviceName = DeviceName::Cuda(None);

/// How many layers fit into the free memory of a device.
fn fitting(
    name: DeviceName,
    device: &dyn Device,
    (limit, cpu_experts): (Option<u64>, usize),
    source: &dyn WeightSource,
    options: &LoadOptions,
) -> Result<usize, Error> {
    let estimates = estimates(source, options)?;
    let n_layers = estimates.layers.len();
    let Some(free_bytes) = device.memory().available_bytes() else { return Ok(n_layers) };
    let margin = if limit.is_some() { 0 } else { MARGIN_BYTES.min(free_bytes / 8) };
    let fit = estimates.fitting(free_bytes - margin, cpu_experts);
    let of = |layers: usize| estimates.on_device(n_layers - layers..n_layers, true, cpu_experts);
    if fit == 0 {
        let error = DeviceError::DoesNotFit { needed_bytes: of(1), free_bytes, fitting_layers: 0 };
        return Err(unusable(name, error));
    }
    if fit < n_layers {
        let (needed_mib, free_mib) = (of(n_layers).div_ceil(1 << 20), free_bytes >> 20);
        let device = device.name();
        tracing::warn!(
            target: "fewbit::device",
            "{fit} of {n_layers} layers fit on {device}, the others are on the CPU: all would take {needed_mib} MiB, \
             and {free_mib} MiB are free"
        );
    }
    Ok(fit)
}

/// The memory that the parts of a model take on a device.
pub(crate) fn estimates(source: &dyn WeightSource, options: &LoadOptions) -> Result<PartEstimates, Error> {
    let n_ctx = options.planned_context(&source.config().map_err(ModelError::from)?);
    Ok(match options.quantize {
        Some(recipe) => {
            PartEstimates::of(&Quantized::new(source, recipe).map_err(ModelError::from)?, n_ctx, options.kv_type)?
        }
        None => PartEstimates::of(source, n_ctx, options.kv_type)?,
    })
}

/// The memory limit that the environment sets.
fn memory_of_environment(name: DeviceName) -> Result<Option<u64>, Error> {
    match std::env::var(GPU_MEMORY_VARIABLE) {
        Ok(text) if !text.is_empty() => match memory_size(&text) {
            Some(bytes) => Ok(Some(bytes)),
            None => {
                let why =
                    format!("{GPU_MEMORY_VARIABLE} is {text:?}: give a number and a unit, such as 6 GiB or 500 MB");
                Err(unusable(name, DeviceError::Unavailable { why }))
            }
        },
        _ => Ok(None),
    }
}

/// The bytes of a size such as `6 GiB`, `500MB` or `1073741824`.
pub fn memory_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1u64,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok()? * unit as f64;
    (bytes < u64::MAX as f64).then_some(bytes as u64)
}

fn unusable(name: DeviceName, error: DeviceError) -> Error {
    Error::new(ErrorKind::Device { device: name.to_string() }, error)
}

/// GPUs of all kinds, of which a build has those whose features it has.
mod gpus {
    use super::{Arc, Device, DeviceError, DeviceMemory, DeviceName, DeviceStatus};

    pub(super) fn of(kind: &str) -> Vec<DeviceStatus> {
        let found = match kind {
            "cuda" => cuda::list(),
            kind => wgpu::list(kind == "metal"),
        };
        found.unwrap_or_else(|error| {
            vec![DeviceStatus {
                name: kind.to_owned(),
                description: "GPUs".to_owned(),
                memory: DeviceMemory::default(),
                is_software: false,
                unusable: Some(error.to_string()),
            }]
        })
    }

    pub(super) fn open(name: DeviceName, memory: Option<u64>) -> Result<Arc<dyn Device>, DeviceError> {
        match name {
            DeviceName::Cuda(index) => cuda::open(index, memory),
            DeviceName::Vulkan(index) => wgpu::open(false, index, memory),
            DeviceName::Metal(index) => wgpu::open(true, index, memory),
            DeviceName::Auto | DeviceName::Cpu => unreachable!("the CPU is opened by nobody"),
        }
    }

    #[cfg(not(all(feature = "cuda", feature = "wgpu")))]
    fn not_built(feature: &str) -> DeviceError {
        let why = format!("this build of fewbit has none: build it with the feature `{feature}`, or take the CPU");
        DeviceError::Unavailable { why }
    }

    #[cfg(feature = "cuda")]
    mod cuda {
        use super::{Arc, Device, DeviceError, DeviceStatus};
        use fewbit_gpu::cuda::{CudaDevice, DeviceInfo, devices};

        pub(super) fn list() -> Result<Vec<DeviceStatus>, DeviceError> {
            let status = |info: DeviceInfo| {
                let (version, (major, minor)) = (info.driver_version, info.capability);
                let (cuda_major, cuda_minor) = (version / 1000, version % 1000 / 10);
                DeviceStatus {
                    description: format!(
                        "{} (driver for CUDA {cuda_major}.{cuda_minor}, compute capability {major}.{minor})",
                        info.adapter
                    ),
                    unusable: info.check().err().map(|error| error.to_string()),
                    name: info.name,
                    memory: info.memory,
                    is_software: false,
                }
            };
            Ok(devices()?.into_iter().map(status).collect())
        }

        pub(super) fn open(index: Option<usize>, memory: Option<u64>) -> Result<Arc<dyn Device>, DeviceError> {
            let device = CudaDevice::open(index)?;
            Ok(match memory {
                Some(bytes) => Arc::new(device.limit_memory(bytes)),
                None => Arc::new(device),
            })
        }
    }

    #[cfg(not(feature = "cuda"))]
    mod cuda {
        use super::{Arc, Device, DeviceError, DeviceStatus, not_built};

        pub(super) fn list() -> Result<Vec<DeviceStatus>, DeviceError> {
            Err(not_built("cuda"))
        }

        pub(super) fn open(_: Option<usize>, _: Option<u64>) -> Result<Arc<dyn Device>, DeviceError> {
            Err(not_built("cuda"))
        }
    }

    #[cfg(feature = "wgpu")]
    mod wgpu {
        use super::{Arc, Device, DeviceError, DeviceStatus};
        use fewbit_gpu::wgpu::{Arithmetic, Backend, DeviceInfo, WgpuDevice, devices};

        fn backend(is_metal: bool) -> Backend {
            if is_metal { Backend::Metal } else { Backend::Vulkan }
        }

        pub(super) fn list(is_metal: bool) -> Result<Vec<DeviceStatus>, DeviceError> {
            let status = |info: DeviceInfo| DeviceStatus {
                description: format!("{} ({})", info.adapter, info.driver),
                name: info.name,
                memory: info.memory,
                is_software: info.is_software,
                unusable: None,
            };
            Ok(devices(backend(is_metal))?.into_iter().map(status).collect())
        }

        pub(super) fn open(
            is_metal: bool,
            index: Option<usize>,
            memory: Option<u64>,
        ) -> Result<Arc<dyn Device>, DeviceError> {
            let device = WgpuDevice::open(backend(is_metal), index, Arithmetic::Native)?;
            Ok(match memory {
                Some(bytes) => Arc::new(device.limit_memory(bytes)),
                None => Arc::new(device),
            })
        }
    }

    #[cfg(not(feature = "wgpu"))]
    mod wgpu {
        use super::{Arc, Device, DeviceError, DeviceStatus, not_built};

        pub(super) fn list(_: bool) -> Result<Vec<DeviceStatus>, DeviceError> {
            Err(not_built("wgpu"))
        }

        pub(super) fn open(_: bool, _: Option<usize>, _: Option<u64>) -> Result<Arc<dyn Device>, DeviceError> {
            Err(not_built("wgpu"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_round_trip_as_text() {
        for name in ["auto", "cpu", "cuda", "cuda:3", "vulkan", "vulkan:0", "metal", "metal:12"] {
            assert_eq!(name.parse::<DeviceName>().expect(name).to_string(), name);
        }
        for name in ["", "cuda:", "wgpu", "cpu:0", "auto:1", "vulkan:", "vulkan:x", "vulkan:-1", "abacus"] {
            assert_eq!(name.parse::<DeviceName>(), Err(DeviceNameError { name: name.to_owned() }));
        }
    }

    #[test]
    fn layers_stay_on_the_cpu_unless_a_gpu_is_named() {
        let of = |gpu_layers| DeviceOptions { gpu_layers, ..DeviceOptions::new() };
        assert_eq!(of(None).layers_on(DeviceName::Cpu, 5).unwrap(), Some(0));
        assert_eq!(of(Some(0)).layers_on(DeviceName::Cpu, 5).unwrap(), Some(0));
        let error = of(Some(2)).layers_on(DeviceName::Cpu, 5).expect_err("it is no GPU");
        assert!(matches!(error.kind(), ErrorKind::Device { .. }));
        let vulkan = DeviceName::Vulkan(None);
        let error = of(Some(6)).layers_on(vulkan, 5).expect_err("there are 5");
        assert!(matches!(error.kind(), ErrorKind::GpuLayers { asked: 6, n_layers: 5 }));
        assert_eq!(of(Some(5)).layers_on(vulkan, 5).unwrap(), Some(5));
        assert_eq!(of(None).layers_on(vulkan, 5).unwrap(), None, "as many as fit");
        let error = gpus::open(DeviceName::Vulkan(Some(usize::MAX)), None).err().expect("there are fewer");
        assert!(matches!(error, DeviceError::Unavailable { .. }), "{error:?}");
    }

    #[test]
    fn memory_sizes_have_units() {
        let sizes = [("6 GiB", 6u64 << 30), ("500MB", 500_000_000), ("1.5 kib", 1536), ("77", 77), (" 8 b ", 8)];
        for (text, bytes) in sizes {
            assert_eq!(memory_size(text), Some(bytes), "{text}");
        }
        for text in ["", "GiB", "6 G", "-1", "1e3", "1..2 MB", "99999999999999999999 GiB"] {
            assert_eq!(memory_size(text), None, "{text}");
        }
    }
}
