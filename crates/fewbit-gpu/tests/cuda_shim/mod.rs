//! The CUDA kernels on the host, for tests without a GPU: the same sources, compiled as C++ into a shared library with a
//! header (`shim.h`) that supplies what CUDA has, and a function that takes a launch as the driver does.
//!
//! The library is compiled when a test first asks for it, and again after its sources change. Without a C++ compiler the
//! tests are left out, and say so in a line that the test harness does not hide; in CI they fail.

use fewbit_gpu::cuda::kernels::{Launch, Module, SOURCES};
use libloading::Library;
use std::collections::hash_map::DefaultHasher;
use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Once};

const SHIM: &str = include_str!("shim.h");
const RUNTIME: &str = include_str!("runtime.cpp");

/// What the compiler gets beside the folder and the files. Floats are computed as written. A fortified `longjmp` would
/// refuse to go from one stack to another.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-fast-math",
    "-U_FORTIFY_SOURCE",
    "-D_XOPEN_SOURCE=700",
    "-D_DARWIN_C_SOURCE",
    "-DFEWBIT_HOST",
];

/// The kernels on the host.
pub(crate) struct Shim {
    library: Library,
}

type LaunchFn =
    unsafe extern "C" fn(*const c_char, *const [u32; 3], u32, u32, *mut *mut c_void, *mut c_char, usize) -> c_int;

/// The library; `None`, after a line on stderr, if it cannot be compiled here.
pub(crate) fn shim() -> Option<&'static Shim> {
    static SHIM: LazyLock<Result<Shim, String>> = LazyLock::new(|| {
        let path = compiled()?;
        // SAFETY: the library is compiled from sources of this repository; loading it only fills a table of kernels.
        let library = unsafe { Library::new(&path) }.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Shim { library })
    });
    static REPORTED: Once = Once::new();
    match &*SHIM {
        Ok(shim) => Some(shim),
        Err(error) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("{error}"),
        Err(error) => {
            REPORTED.call_once(|| {
                let line = format!("\nLEFT OUT, the tests of the CUDA kernels: {error}\n");
                std::io::stderr().write_all(line.as_bytes()).expect("stderr is open");
            });
            None
        }
    }
}

impl Shim {
    /// The bytes of the parameters of a kernel, as the C++ compiler has them.
    pub(crate) fn params_bytes(&self, launch: &Launch) -> u64 {
        let name = full_name(launch);
        // SAFETY: the function takes a string and returns a number.
        unsafe {
            let call = self.library.get::<unsafe extern "C" fn(*const c_char) -> u64>(c"fewbit_params_bytes");
            call.expect("exported")(name.as_ptr())
        }
    }

    /// Runs a kernel until its end. `arguments` are those of `cuLaunchKernel`.
    ///
    /// # Errors
    /// If CUDA would refuse the launch, or threads wait forever or write beyond their shared memory.
    ///
    /// # Safety
    /// The arguments point at the parameters that the kernel takes. All addresses in them are of memory of this process
    /// that is as large as the kernel needs, and that nobody else uses meanwhile.
    pub(crate) unsafe fn launch(&self, launch: &Launch, arguments: &mut [*mut c_void]) -> Result<(), String> {
        let (name, mut error) = (full_name(launch), [0u8; 256]);
        // SAFETY: the type is that of the function; the rest is the caller's promise.
        let result = unsafe {
            let call = self.library.get::<LaunchFn>(c"fewbit_launch").expect("exported");
            let arguments = arguments.as_mut_ptr();
            let (text, n) = (error.as_mut_ptr().cast(), error.len());
            call(name.as_ptr(), &launch.grid, launch.block, launch.shared, arguments, text, n)
        };
        match result {
            0 => Ok(()),
            _ => Err(String::from_utf8_lossy(&error).trim_end_matches('\0').to_owned()),
        }
    }
}

fn full_name(launch: &Launch) -> CString {
    CString::new(format!("{}.{}", launch.module.name(), launch.name)).expect("no zeros in names")
}

/// The path of the library, which is compiled if that was not done before.
fn compiled() -> Result<PathBuf, String> {
    if cfg!(not(unix)) {
        return Err("their threads need the contexts of Unix systems".to_owned());
    }
    let compiler = compiler()?;
    let mut hasher = DefaultHasher::new();
    (&compiler, FLAGS, SOURCES, SHIM, RUNTIME, part(&Module::all())).hash(&mut hasher);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = folder.join(format!("cuda_shim_{:016x}.so", hasher.finish()));
    if library.exists() {
        return Ok(library);
    }
    // Several tests may compile at the same time; each renames what it made.
    let work = tempfile::tempdir_in(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let write = |name: &str, text: &str| {
        let path = work.path().join(name);
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
    };
    for (name, text) in SOURCES {
        write(name, text)?;
    }
    write("shim.h", SHIM)?;
    write("runtime.cpp", RUNTIME)?;
    // One part for each processor.
    let modules = Module::all();
    let n_parts = std::thread::available_parallelism().map_or(1, usize::from).min(modules.len());
    let mut objects = vec!["runtime".to_owned()];
    for i in 0..n_parts {
        let modules: Vec<Module> = modules.iter().copied().skip(i).step_by(n_parts).collect();
        write(&format!("part_{i}.cpp"), &part(&modules))?;
        objects.push(format!("part_{i}"));
    }
    let start = |arguments: &[&str]| {
        let mut command = Command::new(&compiler);
        command.args(FLAGS).args(arguments).current_dir(work.path()).stderr(Stdio::piped());
        command.spawn().map_err(|error| format!("{compiler}: {error}"))
    };
    let finish = |child: std::process::Child| {
        let output = child.wait_with_output().map_err(|error| format!("{compiler}: {error}"))?;
        match output.status.success() {
            true => Ok::<(), String>(()),
            // Not left out: there is a compiler, and it does not accept the kernels.
            false => panic!("{compiler}: {}", String::from_utf8_lossy(&output.stderr)),
        }
    };
    let compiling: Vec<_> = objects
        .iter()
        .map(|name| start(&["-I.", "-c", &format!("{name}.cpp"), "-o", &format!("{name}.o")]))
        .collect::<Result<_, _>>()?;
    compiling.into_iter().try_for_each(finish)?;
    let objects: Vec<String> = objects.iter().map(|name| format!("{name}.o")).collect();
    let mut arguments = vec!["-shared", "-o", "kernels.so"];
    arguments.extend(objects.iter().map(String::as_str));
    finish(start(&arguments)?)?;
    std::fs::rename(work.path().join("kernels.so"), &library).map_err(|error| error.to_string())?;
    Ok(library)
}

/// A C++ compiler: that of `CXX`, or one of the usual names.
fn compiler() -> Result<String, String> {
    let named = std::env::var("CXX").ok();
    let names = named.iter().map(String::as_str).chain(["c++", "g++", "clang++"]);
    let runs = |name: &&str| {
        let mut command = Command::new(name);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    names.map(|name| name.to_owned()).find(|name| runs(&name.as_str())).ok_or("there is no C++ compiler".to_owned())
}

/// C++ that contains these modules, each in a namespace of its own.
fn part(modules: &[Module]) -> String {
    let mut text = String::new();
    // Headers outside of the namespaces.
    for (name, _) in SOURCES.iter().filter(|(name, _)| name.ends_with(".h")) {
        writeln!(text, "#include \"{name}\"").expect("memory");
    }
    for module in modules {
        let (name, file) = (module.name(), module.file());
        let (_, source) = SOURCES.iter().find(|(name, _)| *name == file).expect("a file of the folder");
        writeln!(text, "namespace {name} {{\n#define MODULE \"{name}\"").expect("memory");
        for (name, value) in module.macros() {
            writeln!(text, "#define {name} {value}").expect("memory");
        }
        writeln!(text, "#include \"{file}\"\n}}\n#undef MODULE").expect("memory");
        let own = source.lines().filter_map(|line| line.strip_prefix("#define "));
        let own = own.map(|line| line.split([' ', '(']).next().unwrap_or_default().to_owned());
        for name in own.chain(module.macros().into_iter().map(|(name, _)| name.to_owned())) {
            writeln!(text, "#undef {name}").expect("memory");
        }
    }
    text
}
