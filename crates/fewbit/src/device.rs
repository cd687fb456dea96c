//! The device that a model runs on, by name: `cpu`, `vulkan:0`, `metal`; and the list of available devices.
//!
//! A device that was named and cannot be used is an error, never a silent fallback. `auto` is the CPU in this version:
//! it will choose a GPU once the benefit has been measured on real ones.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use fewbit_model::{Device, DeviceError, Placement};

use crate::error::{Error, ErrorKind};

/// The environment variable with the device of models that are loaded without
/// [`ModelBuilder::device`](crate::ModelBuilder::device).
pub const DEVICE_VARIABLE: &str = "FEWBIT_DEVICE";

/// The device that a model runs on. Written `auto`, `cpu`, `vulkan`, `vulkan:1`, `metal`, `metal:0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceName {
    /// The best device; in this version always the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The Vulkan device with this number (see `fewbit devices`), or the best one that is not emulated on the CPU.
    Vulkan(Option<usize>),
    /// The Metal device with this number, or the best one.
    Metal(Option<usize>),
}

/// A string that is not the name of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a device: choose auto, vulkan[:N], metal[:N], or cpu, which always works")]
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
            Self::Vulkan(None) => f.pad("vulkan"),
            Self::Metal(None) => f.pad("metal"),
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
        is_software: false,
        unusable: None,
    };
    [vec![cpu], gpus::of("vulkan"), gpus::of("metal")].concat()
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

/// Places the layers of a model with `n_layers` layers. On a GPU, the last `gpu_layers` layers (default: all) run
/// there, together with everything after them. For code that loads a [`Decoder`](crate::expert::engine::Decoder)
/// itself; [`ModelBuilder`](crate::ModelBuilder) calls it otherwise.
///
/// # Errors
/// [`ErrorKind::Device`] if the device cannot be used, or if `gpu_layers` is above 0 for the CPU;
/// [`ErrorKind::GpuLayers`] if it is more than `n_layers`.
pub fn placement(asked: Option<DeviceName>, gpu_layers: Option<usize>, n_layers: usize) -> Result<Placement, Error> {
    let name = chosen(asked)?;
    let is_gpu = matches!(name, DeviceName::Vulkan(_) | DeviceName::Metal(_));
    let layers = gpu_layers.unwrap_or(n_layers);
    if layers > n_layers {
        return Err(ErrorKind::GpuLayers { asked: layers, n_layers }.into());
    }
    if !is_gpu && layers > 0 && gpu_layers.is_some() {
        let why =
            "it is not a GPU, so no layers can be placed on one: choose a GPU that `fewbit devices` lists".to_owned();
        return Err(Error::new(ErrorKind::Device { device: name.to_string() }, DeviceError::Unavailable { why }));
    }
    if !is_gpu || layers == 0 {
        return Ok(Placement::new());
    }
    let device = gpus::open(name).map_err(|error| Error::new(ErrorKind::Device { device: name.to_string() }, error))?;
    tracing::info!(device = device.name(), layers, n_layers, "placing layers on a GPU");
    Ok(Placement::new().cpu(n_layers - layers).device(layers, Arc::clone(&device)).head(device))
}

#[cfg(feature = "wgpu")]
mod gpus {
    use super::{Arc, Device, DeviceError, DeviceName, DeviceStatus};
    use fewbit_gpu::wgpu::{Arithmetic, Backend, WgpuDevice, devices};

    pub(super) fn of(kind: &str) -> Vec<DeviceStatus> {
        let backend = if kind == "metal" { Backend::Metal } else { Backend::Vulkan };
        match devices(backend) {
            Ok(found) => {
                let status = |info: fewbit_gpu::wgpu::DeviceInfo| DeviceStatus {
                    description: format!("{} ({})", info.adapter, info.driver),
                    name: info.name,
                    is_software: info.is_software,
                    unusable: None,
                };
                found.into_iter().map(status).collect()
            }
            Err(error) => vec![DeviceStatus {
                name: kind.to_owned(),
                description: "GPUs".to_owned(),
                is_software: false,
                unusable: Some(error.to_string()),
            }],
        }
    }

    pub(super) fn open(name: DeviceName) -> Result<Arc<dyn Device>, DeviceError> {
        let (backend, index) = match name {
            DeviceName::Metal(index) => (Backend::Metal, index),
            DeviceName::Vulkan(index) => (Backend::Vulkan, index),
            DeviceName::Auto | DeviceName::Cpu => unreachable!("the CPU is opened by nobody"),
        };
        Ok(Arc::new(WgpuDevice::open(backend, index, Arithmetic::Native)?))
    }
}

#[cfg(not(feature = "wgpu"))]
mod gpus {
    use super::{Arc, Device, DeviceError, DeviceName, DeviceStatus};

    const WHY: &str = "this build of fewbit has no GPUs: build it with the feature `wgpu`, or take the CPU";

    pub(super) fn of(kind: &str) -> Vec<DeviceStatus> {
        vec![DeviceStatus {
            name: kind.to_owned(),
            description: "GPUs".to_owned(),
            is_software: false,
            unusable: Some(WHY.to_owned()),
        }]
    }

    pub(super) fn open(_: DeviceName) -> Result<Arc<dyn Device>, DeviceError> {
        Err(DeviceError::Unavailable { why: WHY.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_round_trip_as_text() {
        for name in ["auto", "cpu", "vulkan", "vulkan:0", "metal", "metal:12"] {
            assert_eq!(name.parse::<DeviceName>().expect(name).to_string(), name);
        }
        for name in ["", "cuda", "wgpu", "cpu:0", "auto:1", "vulkan:", "vulkan:x", "vulkan:-1", "abacus"] {
            assert_eq!(name.parse::<DeviceName>(), Err(DeviceNameError { name: name.to_owned() }));
        }
    }

    #[test]
    fn layers_stay_on_the_cpu_unless_a_gpu_is_named() {
        assert_eq!(
            format!("{:?}", placement(Some(DeviceName::Cpu), None, 5).unwrap()),
            format!("{:?}", Placement::new())
        );
        assert!(placement(Some(DeviceName::Cpu), Some(0), 5).is_ok());
        let error = placement(Some(DeviceName::Cpu), Some(2), 5).expect_err("it is no GPU");
        assert!(matches!(error.kind(), ErrorKind::Device { .. }));
        let error = placement(Some(DeviceName::Vulkan(None)), Some(6), 5).expect_err("there are 5");
        assert!(matches!(error.kind(), ErrorKind::GpuLayers { asked: 6, n_layers: 5 }));
        // With no layers on the GPU, the device is not opened.
        assert!(placement(Some(DeviceName::Vulkan(Some(usize::MAX))), Some(0), 5).is_ok());
        let error = placement(Some(DeviceName::Vulkan(Some(usize::MAX))), None, 5).expect_err("there are fewer");
        assert!(matches!(error.cause(), Some(DeviceError::Unavailable { .. })), "{error:?}");
    }
}
