//! The kernel crate's heap: a fixed piece of the kernel image.
//!
//! Rule: page faults and everything in `mm` do without it; a lock taken for it would be counted there. It is for the
//! harness, for boot tables and for threads' bookkeeping.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};

use linked_list_allocator::Heap;

use crate::sync::{LockName, Spin};

/// Size of the heap in bytes.
const SIZE: usize = 8 << 20;

#[repr(C, align(4096))]
struct Arena(UnsafeCell<[u8; SIZE]>);

// SAFETY: the bytes are only reached through the heap that owns them, behind its lock.
unsafe impl Sync for Arena {}

/// Last in the image: on a machine with too little memory it is the part that is not there.
#[unsafe(link_section = ".heap")]
static ARENA: Arena = Arena(UnsafeCell::new([0; SIZE]));

struct KernelHeap(Spin<Heap>);

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(Spin::new(&LockName("kernel heap"), Heap::empty()));

/// The machine has no memory where the heap lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

/// Opens the heap. Call once, on the boot CPU, before the first allocation.
///
/// # Errors
/// There is no memory behind the kernel image's addresses: the loader does not check.
pub fn init() -> Result<(), NoMemory> {
    const PATTERN: u8 = 0xa5;
    let start = ARENA.0.get().cast::<u8>();
    for place in [start, start.wrapping_add(SIZE - 1)] {
        // SAFETY: both bytes lie in `ARENA`, which nothing uses yet.
        let remembers = unsafe {
            place.write_volatile(PATTERN);
            place.read_volatile() == PATTERN
        };
        if !remembers {
            return Err(NoMemory);
        }
    }
    // SAFETY: `ARENA` is static, page-aligned and used for nothing else, and this runs once.
    unsafe { HEAP.0.lock().init(start, SIZE) };
    Ok(())
}

// SAFETY: `Heap` hands out disjoint, aligned blocks of `ARENA`; the lock makes every change exclusive.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.0.lock().allocate_first_fit(layout) {
            Ok(block) => block.as_ptr(),
            Err(()) => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(block) = NonNull::new(block) else {
            return;
        };
        // SAFETY: the caller got `block` from `alloc` with the same layout, as `GlobalAlloc` demands.
        unsafe { self.0.lock().deallocate(block, layout) }
    }
}
