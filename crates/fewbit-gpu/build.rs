//! Compresses the PTX of the CUDA kernels, which the program contains: to a sixth of 13 MB.

#[cfg(feature = "cuda")]
fn main() -> std::io::Result<()> {
    use std::fmt::Write as _;
    use std::io::Write as _;
    use std::path::PathBuf;

    let folder = PathBuf::from("src/cuda/ptx");
    println!("cargo:rerun-if-changed={}", folder.display());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let mut list = String::from("&[\n");
    let mut paths = std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "ptx"));
    paths.sort();
    for path in paths {
        let name = path.file_stem().expect("it has an extension").to_string_lossy().into_owned();
        let compressed = out.join(&name);
        let file = std::fs::File::create(&compressed)?;
        let mut encoder = flate2::write::DeflateEncoder::new(file, flate2::Compression::default());
        encoder.write_all(&std::fs::read(&path)?)?;
        encoder.finish()?;
        writeln!(list, "    ({name:?}, include_bytes!({compressed:?})),").expect("memory");
    }
    std::fs::write(out.join("ptx.rs"), list + "]")
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
