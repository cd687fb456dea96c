//! The PTX in the repository is that of the kernels' sources, and rounds as the CPU does. Nothing is compiled for it.
#![cfg(feature = "cuda")]

#[path = "../../../xtask/src/ptx/text.rs"]
mod text;

use fewbit_gpu::cuda::kernels::Module;
use std::path::Path;

#[test]
fn ptx_belongs_to_the_sources_and_rounds_as_the_cpu_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda");
    let findings = text::findings(&folder.join("kernels"), &folder.join("ptx")).expect("readable");
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

#[test]
fn every_module_is_in_the_list_of_what_is_compiled() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/kernels");
    let listed = text::modules(&folder).expect("readable");
    let listed: Vec<_> = listed.into_iter().map(|module| (module.name, module.file, module.macros)).collect();
    let all = Module::all().into_iter().map(|module| {
        let macros = module.macros().into_iter().map(|(name, value)| format!("-D{name}={value}"));
        (module.name(), module.file().to_owned(), macros.collect::<Vec<_>>())
    });
    let all: Vec<_> = all.collect();
    assert!(listed == all, "kernels/modules.txt is not {all:#?}");
}

#[test]
fn inexact_instructions_are_found() {
    let exact = "\tfma.rn.f32 %f1, %f2, %f3, %f4;\n\t@%p1 mul.rn.f32 %f1, %f2, %f3;\n\tcvt.rn.f32.s32 %f1, %r1;\n\
                 \tadd.s32 %r1, %r2, %r3;\n\tsqrt.rn.f32 %f1, %f2;\n\tmax.f32 %f1, %f2, %f3;\n// mul.f32\n\tmad.lo.s32 %r1;\n";
    assert_eq!(text::inexact(exact), Vec::<&str>::new());
    for line in [
        "mul.f32 %f1, %f2, %f3;",
        "add.ftz.f32 %f1, %f2, %f3;",
        "@%p1 sub.f32 %f1, %f2, %f3;",
        "ex2.approx.f32 %f1, %f2;",
        "div.full.f32 %f1, %f2, %f3;",
        "fma.rn.ftz.f32 %f1, %f2, %f3, %f4;",
    ] {
        assert_eq!(text::inexact(&format!("\t{line}\n")), [line]);
    }
}
