//! From the boot loader's hands to a running kernel: one `BootInfo`, filled by one of two adapters.

mod pvh;

/// The first Rust code common to every way of booting. On the boot CPU, on the loader's stack and page tables.
fn start() -> ! {
    crate::serial::init();
    crate::log::init();
    crate::heap::init();
    crate::run::run("pvh", 0)
}
