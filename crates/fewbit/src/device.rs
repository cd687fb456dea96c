//! Which device a model computes on, by name: `cpu`, `vulkan:0`, `metal`; and which devices there are.
//!
//! A device that was named and cannot be used is an error, never a silent fallback. `auto` is the CPU in this version:
//! it will take a GPU when what that brings has been measured on real ones.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use fewbit_model::{Device, DeviceError, Placement};

use crate::error::{Error, ErrorKind};

/// The environment variable that names a device for models that are loaded without one.
pub const DEVICE_VARIABLE: &str = "FEWBIT_DEVICE";

/// Where a model computes. Written `auto`, `cpu`, `vulkan`, `vulkan:1`, `metal`, `metal:0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceName {
    /// What is best; in this version the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The Vulkan device of this number (`fewbit devices` shows them), or the best that is no program on the CPU.
    Vulkan(Option<usize>),
    /// The same of Metal.
    Metal(Option<usize>),
}

/// A name that stands for no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no device of this version: there are auto, vulkan[:N], metal[:N], and cpu, which always works")]
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

/// A device that can be named, or why one cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceStatus {
    /// What [`DeviceName`] reads: `cpu`, `vulkan:0`; of what is not there the kind alone.
    pub name: String,
    /// What it is, and its driver.
    pub description: String,
    /// Whether it is a program on the CPU, which is used only if it is named.
    pub is_software: bool,
    /// Why it cannot be used.
    pub unusable: Option<String>,
}

/// Every device of this computer, and why those of other kinds cannot be used.
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

/// The device that was asked for, or that the environment names.
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

/// Where the layers of a model of `n_layers` go: of a GPU the last `gpu_layers`, or all, and what follows them. For those
/// who load a [`Decoder`](crate::expert::engine::Decoder) themselves; [`ModelBuilder`](crate::ModelBuilder) does it for others.
///
/// # Errors
/// [`ErrorKind::Device`], [`ErrorKind::GpuLayers`].
pub fn placement(asked: Option<DeviceName>, gpu_layers: Option<usize>, n_layers: usize) -> Result<Placement, Error> {
    let name = chosen(asked)?;
    let is_gpu = matches!(name, DeviceName::Vulkan(_) | DeviceName::Metal(_));
    let layers = gpu_layers.unwrap_or(n_layers);
    if layers > n_layers {
        return Err(ErrorKind::GpuLayers { asked: layers, n_layers }.into());
    }
    if !is_gpu && layers > 0 && gpu_layers.is_some() {
        let why = "it is no GPU, so that no layers can be on one: name one that `fewbit devices` shows".to_owned();
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
    fn names_are_read_as_they_are_written() {
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
        // Of a GPU that takes no layer, nothing is opened.
        assert!(placement(Some(DeviceName::Vulkan(Some(usize::MAX))), Some(0), 5).is_ok());
        let error = placement(Some(DeviceName::Vulkan(Some(usize::MAX))), None, 5).expect_err("there are fewer");
        assert!(matches!(error.cause(), Some(DeviceError::Unavailable { .. })), "{error:?}");
    }
}
