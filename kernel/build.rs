//! Hands the linker script to the linker, for the bare-metal targets only, and where to link.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
        // The start of `IMAGE` in arch-x86's `layout`.
        let base = match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
            Ok("x86") => "0xfd000000",
            _ => "0xffffffff80000000",
        };
        println!("cargo:rustc-link-arg-bins=--defsym=KERNEL_BASE={base}");
        println!("cargo:rustc-link-arg-bins=-T{folder}/link.ld");
    }
}
