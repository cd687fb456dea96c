//! Signals that end the program: Ctrl-C (SIGINT), SIGTERM, and SIGHUP when the terminal is closed.
//!
//! By default, a signal ends the program at once. While a [`Tidy`] is alive, the first signal only sets [`flag`], so
//! that the running command can clean up (such as remove a partial file) and end by itself; a second signal ends the
//! program at once. In a conversation, Ctrl-C only ends the answer ([`interrupt_sets`]). The exit status is 128 plus
//! the signal's number: 130, 143 or 129. A server with a configuration file reloads it on SIGHUP ([`hangup_reloads`]).

use std::process;
#[cfg(all(unix, feature = "serve"))]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

static CAUGHT: AtomicI32 = AtomicI32::new(0);
static FLAG: AtomicBool = AtomicBool::new(false);
#[cfg(feature = "serve")]
static RELOAD: AtomicBool = AtomicBool::new(false);
#[cfg(feature = "serve")]
static HANGUP_RELOADS: AtomicBool = AtomicBool::new(false);
/// The handle of the signal iterator, to add more signals.
#[cfg(all(unix, feature = "serve"))]
static SIGNALS: OnceLock<signal_hook::iterator::Handle> = OnceLock::new();
static TIDIES: AtomicUsize = AtomicUsize::new(0);
static INTERRUPT: Mutex<Option<Arc<AtomicBool>>> = Mutex::new(None);

const SIGINT: i32 = 2;
#[cfg(feature = "serve")]
const SIGHUP: i32 = 1;

/// A guard: while one is alive, the first signal only sets [`flag`], and the program ends by itself.
pub(crate) struct Tidy(());

impl Tidy {
    pub(crate) fn new() -> Self {
        TIDIES.fetch_add(1, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Tidy {
    fn drop(&mut self) {
        TIDIES.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether a signal came while a [`Tidy`] was alive.
pub(crate) fn flag() -> &'static AtomicBool {
    &FLAG
}

/// The exit status for the signal that was caught, if any.
pub(crate) fn exit_code() -> Option<u8> {
    match CAUGHT.load(Ordering::SeqCst) {
        0 => None,
        signal => Some(status(signal)),
    }
}

/// Tells that the signal was the expected way to end the command, so that the exit status is 0.
#[cfg(feature = "serve")]
pub(crate) fn was_expected() {
    CAUGHT.store(0, Ordering::SeqCst);
}

/// Makes Ctrl-C set `flag` and do nothing else.
pub(crate) fn interrupt_sets(flag: &Arc<AtomicBool>) {
    *INTERRUPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(flag));
}

/// Makes SIGHUP request a reload (see [`takes_reload`]) instead of ending the program. Also if it was ignored before,
/// as in a server that was started with `nohup`.
#[cfg(feature = "serve")]
pub(crate) fn hangup_reloads() {
    HANGUP_RELOADS.store(true, Ordering::SeqCst);
    #[cfg(unix)]
    if let Some(signals) = SIGNALS.get() {
        // If this fails, the default action of the system remains.
        let _ = signals.add_signal(SIGHUP);
    }
}

/// Whether a SIGHUP came since the last call.
#[cfg(feature = "serve")]
pub(crate) fn takes_reload() -> bool {
    RELOAD.swap(false, Ordering::SeqCst)
}

fn status(signal: i32) -> u8 {
    128 + u8::try_from(signal).unwrap_or(0)
}

fn caught(signal: i32) {
    if signal == SIGINT
        && let Some(flag) = &*INTERRUPT.lock().unwrap_or_else(PoisonError::into_inner)
    {
        flag.store(true, Ordering::Relaxed);
        return;
    }
    #[cfg(feature = "serve")]
    if signal == SIGHUP && HANGUP_RELOADS.load(Ordering::SeqCst) {
        RELOAD.store(true, Ordering::SeqCst);
        return;
    }
    let is_first = CAUGHT.swap(signal, Ordering::SeqCst) == 0;
    FLAG.store(true, Ordering::SeqCst);
    if !is_first || TIDIES.load(Ordering::SeqCst) == 0 {
        process::exit(status(signal).into());
    }
}

/// Installs the signal handlers.
#[cfg(unix)]
pub(crate) fn install() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    // Signals that are ignored at the start (by `nohup` or in background jobs) stay ignored.
    let signals: Vec<i32> = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !is_ignored(signal)).collect();
    // If this fails, the default action of the system remains.
    if let Ok(mut signals) = signal_hook::iterator::Signals::new(signals) {
        #[cfg(feature = "serve")]
        let _ = SIGNALS.set(signals.handle());
        let _ =
            std::thread::Builder::new().name("signals".to_owned()).spawn(move || signals.forever().for_each(caught));
    }
}

/// Whether a signal is ignored. Only detected on Linux, which reports it in `/proc`.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

/// Installs the signal handlers.
#[cfg(not(unix))]
pub(crate) fn install() {
    // If this fails, the default action of the system remains.
    let _ = ctrlc::set_handler(|| caught(SIGINT));
}
