//! What happens when the kernel finds its own rules broken.

use core::panic::PanicInfo;

use crate::exit::{ExitCode, exit};
use crate::serial;

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    serial::expect_dead_holders();
    log::error!("{info}");
    exit(ExitCode::Panic)
}
