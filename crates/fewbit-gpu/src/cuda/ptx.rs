//! The kernels as PTX, the text that drivers compile for their GPU. `cargo xtask ptx` makes it of the sources in `kernels/`;
//! `build.rs` compresses it.

use super::kernels::Module;
use std::io::Read;

/// The compute capabilities that there is PTX for, ascending. A GPU runs that of the highest that is not above its own.
const CAPABILITIES: [(u32, u32); 2] = [super::LOWEST_CAPABILITY, (8, 0)];

/// The compressed texts, by module and architecture: `rows.compute_75`.
const TEXTS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/ptx.rs"));

/// The PTX of a module for a device of this compute capability.
pub(super) fn of(module: Module, capability: (u32, u32)) -> Option<String> {
    let (major, minor) = *CAPABILITIES.iter().rev().find(|&&lowest| lowest <= capability)?;
    let name = format!("{}.compute_{major}{minor}", module.name());
    let (_, compressed) = TEXTS.iter().find(|(of, _)| *of == name)?;
    let mut text = String::new();
    flate2::read::DeflateDecoder::new(*compressed).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_has_a_text_for_every_device() {
        for module in Module::all() {
            for (capability, target) in [((7, 5), "sm_75"), ((8, 0), "sm_80"), ((8, 9), "sm_80"), ((12, 0), "sm_80")] {
                let text = of(module, capability).expect("in the list");
                assert!(text.contains(&format!(".target {target}\n")), "{module:?} for {capability:?}");
                assert!(text.contains(".version 8.0\n"), "what every driver since CUDA 12.0 reads: {module:?}");
            }
            assert_eq!(of(module, (7, 0)), None);
        }
    }
}
