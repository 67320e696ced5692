//! Ctrl-C and SIGTERM: noted here, acted on by whoever runs a child.

use std::sync::atomic::{AtomicBool, Ordering};

/// Set once, by the handler; read by the loops that watch children. Nothing is published with it: Relaxed.
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Takes the signals over. Without it they would end us and leave QEMU running.
pub fn install() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| REQUESTED.store(true, Ordering::Relaxed))
}

/// Whether we were asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}
