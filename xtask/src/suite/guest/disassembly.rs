//! What the PAE kernel is made of. An entry of 64 bits is two words there, each read and written by itself; an atomic access
//! to both would be a locked write, also where only a read was meant, and a read by way of the x87 spoils its registers.

use std::path::Path;
use std::process::Command;

use super::{Complaint, GuestTest};
use crate::setup::objdump;
use crate::symbolise::rustc_name;

/// Only PAE has entries wider than its words.
pub const TESTS: [GuestTest; 1] = [GuestTest {
    name: "build::no_entry_is_accessed_as_64_bits_at_once",
    about: "the kernel's machine code: no x87 instruction, and no cmpxchg8b but behind a jump, for user memory",
    run: |stage| look(stage.kernel),
}];

/// So many complaints are enough.
const SHOWN: usize = 20;
/// A disassembly with fewer functions is not one of the kernel.
const FEWEST_FUNCTIONS: usize = 100;

fn look(kernel: &Path) -> Result<(), Complaint> {
    let objdump = objdump::require().map_err(|missing| vec![missing.to_string()])?;
    let output = Command::new(&objdump).args(["-d", "--no-show-raw-insn"]).arg(kernel).output();
    let output = output.map_err(|error| vec![format!("{} does not start: {error}", objdump.display())])?;
    if !output.status.success() {
        return Err(vec![String::from_utf8_lossy(&output.stderr).into_owned()]);
    }
    judge(&String::from_utf8_lossy(&output.stdout), FEWEST_FUNCTIONS)
}

/// Looks through a disassembly that must have at least `fewest` functions with names of ours.
fn judge(disassembly: &str, fewest: usize) -> Result<(), Complaint> {
    let (mut function, mut ours) = (String::new(), 0);
    // A jump right before it keeps the emulator from wrong flags (`arch/x86/src/32/entry.rs`).
    let mut behind_a_jump = false;
    let mut complaints = Vec::new();
    for line in disassembly.lines() {
        if let Some(symbol) = line.strip_suffix(">:").and_then(|line| line.split_once(" <")).map(|(_, symbol)| symbol) {
            function = rustc_name(symbol);
            ours += usize::from(is_of_page_tables(&function));
            behind_a_jump = false;
            continue;
        }
        // What is no instruction, such as the head line with the file's format, has no address before its colon.
        let Some((address, instruction)) = line.split_once(':') else { continue };
        if !address.trim().bytes().all(|digit| digit.is_ascii_hexdigit()) {
            continue;
        }
        let mut words =
            instruction.split_ascii_whitespace().filter(|word| !matches!(*word, "lock" | "rep" | "fs" | "gs"));
        let Some(mnemonic) = words.next() else { continue };
        if mnemonic.starts_with('f') {
            complaints.push(format!("{}: x87 instruction {mnemonic} in {function}", address.trim()));
        }
        if mnemonic.starts_with("cmpxchg8b") && !(function.contains("user_access::") && behind_a_jump) {
            complaints.push(format!("{}: {mnemonic} in {function}", address.trim()));
        }
        behind_a_jump = mnemonic == "jmp";
    }
    if ours < fewest {
        complaints.push(format!("only {ours} functions of mm and arch-x86 are seen"));
    }
    complaints.truncate(SHOWN);
    if complaints.is_empty() { Ok(()) } else { Err(complaints) }
}

/// Whether entries are accessed there, if anywhere: in `mm` and below, but for the accessors of user memory.
fn is_of_page_tables(function: &str) -> bool {
    let has = |part: &str| function.contains(part);
    (has("mm::") || has("arch_x86::")) && !has("kernel::") && !has("user_access::")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = "
target/kernel.elf:     file format elf32-i386

fd000000 <_ZN2mm7pgtable8slot_pae4load17h0123456789abcdefE>:
fd000000:\tpush   %ebp
fd000001:\tlock cmpxchg %ecx,(%edx)
fd000003:\tfs mov (%esi),%eax

fd000010 <_ZN8arch_x8611user_access9write_u6417h0123456789abcdefE>:
fd000010:\tjmp    fd000012
fd000012:\tlock cmpxchg8b (%esi)

fd000020 <_ZN6kernel5tests4sums17h0123456789abcdefE>:
fd000020:\tlock cmpxchg (%esi)
";

    #[test]
    fn wide_accesses_are_found_but_behind_a_jump_in_accessors_of_user_memory() {
        assert_eq!(judge(CLEAN, 1), Ok(()));
        for (narrow, wide, complaint) in [
            ("cmpxchg %ecx,(%edx)", "cmpxchg8b (%edx)", "fd000001: cmpxchg8b in mm::pgtable::slot_pae::load"),
            ("lock cmpxchg (%esi)", "lock cmpxchg8b (%esi)", "fd000020: cmpxchg8b in kernel::tests::sums"),
            ("jmp    fd000012", "nop", "fd000012: cmpxchg8b in arch_x86::user_access::write_u64"),
        ] {
            assert_eq!(judge(&CLEAN.replace(narrow, wide), 1), Err(vec![complaint.to_owned()]));
        }
    }

    #[test]
    fn x87_is_found_everywhere() {
        let float = CLEAN.replace("fd000020:\tlock cmpxchg (%esi)", "fd000020:\tfildll (%esi)");
        assert_eq!(judge(&float, 1), Err(vec!["fd000020: x87 instruction fildll in kernel::tests::sums".to_owned()]));
    }

    #[test]
    fn a_disassembly_without_functions_shows_nothing() {
        assert!(judge("", 1).is_err());
        assert!(judge(CLEAN, 2).is_err());
    }
}
