//! The kernels as PTX, the text that drivers compile for their GPU. `cargo xtask ptx` makes it of the sources in `kernels/`.

mod texts;

use super::kernels::Module;

/// The compute capabilities that there is PTX for, ascending. A GPU runs that of the highest that is not above its own.
const CAPABILITIES: [(u32, u32); 2] = [super::LOWEST_CAPABILITY, (8, 0)];

/// The PTX of a module for a device of this compute capability.
pub(super) fn of(module: Module, capability: (u32, u32)) -> Option<&'static str> {
    let which = CAPABILITIES.iter().rposition(|&lowest| lowest <= capability)?;
    let name = module.name();
    texts::TEXTS.iter().find(|(of, _)| *of == name).map(|(_, texts)| texts[which])
}
