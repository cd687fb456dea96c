//! Signals that end the program: Ctrl-C (SIGINT), SIGTERM, and SIGHUP when the terminal is closed.
//!
//! Mostly there is nothing to tidy up, and the program ends at once. While a [`Tidy`] is alive there is: then the first
//! signal only says so ([`flag`]), and what runs ends by itself, without half a file; a second signal does not wait
//! for that. In a conversation Ctrl-C ends the answer ([`interrupt_sets`]). The exit status is 128 and the signal's
//! number: 130, 143, 129. A server with a configuration file reads it again on SIGHUP ([`hangup_reloads`]).

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
/// What more signals can be added to.
#[cfg(all(unix, feature = "serve"))]
static SIGNALS: OnceLock<signal_hook::iterator::Handle> = OnceLock::new();
static TIDIES: AtomicUsize = AtomicUsize::new(0);
static INTERRUPT: Mutex<Option<Arc<AtomicBool>>> = Mutex::new(None);

const SIGINT: i32 = 2;
#[cfg(feature = "serve")]
const SIGHUP: i32 = 1;

/// While it lives, a signal lets the program end by itself.
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

/// Set by a signal that came while there was something to tidy up.
pub(crate) fn flag() -> &'static AtomicBool {
    &FLAG
}

/// The exit status that such a signal asks for.
pub(crate) fn exit_code() -> Option<u8> {
    match CAUGHT.load(Ordering::SeqCst) {
        0 => None,
        signal => Some(status(signal)),
    }
}

/// The signal was the usual way to end what ran, and it has ended well: the exit status is 0.
#[cfg(feature = "serve")]
pub(crate) fn was_expected() {
    CAUGHT.store(0, Ordering::SeqCst);
}

/// From now on Ctrl-C sets `flag` and does nothing else.
pub(crate) fn interrupt_sets(flag: &Arc<AtomicBool>) {
    *INTERRUPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(flag));
}

/// From now on SIGHUP does not end the program: [`takes_reload`] says that it came, also where it was ignored so far, as
/// in a server that `nohup` started.
#[cfg(feature = "serve")]
pub(crate) fn hangup_reloads() {
    HANGUP_RELOADS.store(true, Ordering::SeqCst);
    #[cfg(unix)]
    if let Some(signals) = SIGNALS.get() {
        // Without a handler the system's own way remains.
        let _ = signals.add_signal(SIGHUP);
    }
}

/// Whether a SIGHUP has come since the last call.
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

/// Begins to listen.
#[cfg(unix)]
pub(crate) fn install() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    // What whoever started the program wants ignored (`nohup`, jobs in the background) stays so.
    let signals: Vec<i32> = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !is_ignored(signal)).collect();
    // Without a handler the system's own way of ending programs remains.
    if let Ok(mut signals) = signal_hook::iterator::Signals::new(signals) {
        #[cfg(feature = "serve")]
        let _ = SIGNALS.set(signals.handle());
        let _ =
            std::thread::Builder::new().name("signals".to_owned()).spawn(move || signals.forever().for_each(caught));
    }
}

/// Whether a signal is ignored; known on Linux only, where it can be read.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

/// Begins to listen.
#[cfg(not(unix))]
pub(crate) fn install() {
    // Without a handler the system's own way of ending programs remains.
    let _ = ctrlc::set_handler(|| caught(SIGINT));
}
