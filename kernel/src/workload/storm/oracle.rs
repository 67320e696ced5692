//! What must hold after a round, whatever the CPUs' order was.
//!
//! The checks look at the page tables, the frame descriptors and the pages themselves, while nobody else runs. None of them
//! goes by what the faults have counted.

use alloc::format;
use alloc::string::String;
use alloc::vec;

use arch_x86::machine::X86;
use arch_x86::user_access::{UserAddr, read_u64};
use mm::address::Pfn;
use mm::pgtable::{Entry, pte_at};

use super::Phase;
use crate::memory::{self, Mm, MmRef, ObjectRef, enter, memory};

/// A property that is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// No access failed.
    Access,
    /// A page shows zero until its owner writes it.
    Zero,
    /// A page holds what all CPUs together have added to it.
    Sum,
    /// A page is one frame, the same at all its addresses and no other page's, with as many mappings and references.
    Frame,
    /// After unmapping, everything that was taken is back.
    Conserved,
}

impl Property {
    const ALL: [Self; 5] = [Self::Access, Self::Zero, Self::Sum, Self::Frame, Self::Conserved];

    fn name(self) -> &'static str {
        match self {
            Self::Access => "every access succeeds",
            Self::Zero => "a page is zero at first",
            Self::Sum => "every increment is there",
            Self::Frame => "a page is one frame",
            Self::Conserved => "frames and tables come back",
        }
    }
}

/// How often a property was checked, and what was found wrong.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// What was checked.
    pub name: &'static str,
    /// How often.
    pub checked: u64,
    /// How often it did not hold.
    pub failed: u64,
    /// The first that was found wrong, in words.
    pub first: Option<String>,
}

impl Oracle {
    /// Whether the property held each time.
    pub fn holds(&self) -> bool {
        self.failed == 0
    }
}

/// What all checks of a phase found.
pub struct Findings {
    oracles: [Oracle; Property::ALL.len()],
    /// The first and the last frame of a page.
    frames: Option<(Pfn, Pfn)>,
}

impl Findings {
    /// Nothing is checked yet.
    pub fn new() -> Self {
        let unchecked = |property: Property| Oracle { name: property.name(), checked: 0, failed: 0, first: None };
        Self { oracles: Property::ALL.map(unchecked), frames: None }
    }

    /// The properties that were checked at all.
    pub fn oracles(&self) -> impl Iterator<Item = &Oracle> {
        self.oracles.iter().filter(|oracle| oracle.checked > 0)
    }

    /// The first and the last frame that a page was found in.
    pub fn frames(&self) -> Option<(Pfn, Pfn)> {
        self.frames
    }

    fn note_frame(&mut self, pfn: Pfn) {
        let (first, last) = self.frames.unwrap_or((pfn, pfn));
        self.frames = Some((first.min(pfn), last.max(pfn)));
    }

    /// Notes that `property` was checked `checked` times and did not hold `failed` times.
    pub fn note_many(&mut self, property: Property, checked: u64, failed: u64) {
        if let Some(oracle) = self.oracles.get_mut(property as usize) {
            oracle.checked += checked;
            oracle.failed += failed;
        }
    }

    /// Notes that `property` was checked once; `wrong` describes what was found instead, if anything.
    fn note(&mut self, property: Property, wrong: Option<String>) {
        self.note_many(property, 1, u64::from(wrong.is_some()));
        if let Some(oracle) = self.oracles.get_mut(property as usize)
            && oracle.first.is_none()
        {
            oracle.first = wrong;
        }
    }
}

/// Frames by number, to see one twice.
struct Seen(alloc::vec::Vec<u64>);

impl Seen {
    fn none() -> Self {
        Self(vec![0; memory().memmap().end().0.div_ceil(u64::BITS.into()) as usize])
    }

    /// Whether this is the first time for `pfn`.
    fn is_new(&mut self, pfn: Pfn) -> bool {
        let Some(word) = self.0.get_mut((pfn.0 / u64::from(u64::BITS)) as usize) else { return false };
        let bit = 1 << (pfn.0 % u64::from(u64::BITS));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

/// Checks every page of the phase after `cpus` CPUs have done their part.
pub fn check_pages(
    mm: &MmRef,
    phase: &Phase,
    object: Option<&ObjectRef>,
    salt: u64,
    cpus: u64,
    findings: &mut Findings,
) {
    let _user = enter(mm);
    let mut seen = Seen::none();
    for page in 0..phase.pages {
        let expected = phase.sum(salt, page, cpus);
        for address in phase.addresses(page) {
            let found = UserAddr::new(address.0 as usize).map(read_u64);
            let wrong = (found != Some(Ok(expected)))
                .then(|| format!("page {page} at {address:?} holds {found:x?}, expected {expected:#x}"));
            findings.note(Property::Sum, wrong);
        }
        match frame_of(mm, phase, object, page, &mut seen) {
            Ok(frame) => {
                findings.note_frame(frame);
                findings.note(Property::Frame, None);
            }
            Err(wrong) => findings.note(Property::Frame, Some(wrong)),
        }
    }
}

/// The frame of a page, or what is wrong with it.
fn frame_of(mm: &Mm, phase: &Phase, object: Option<&ObjectRef>, page: u64, seen: &mut Seen) -> Result<Pfn, String> {
    let mut frame = object.and_then(|object| object.resident(page));
    let mut mappings = 0;
    for address in phase.addresses(page) {
        let entry = pte_at(mm, address).unwrap_or(Entry::NONE);
        if !entry.is_present() || !entry.is_writable() || entry.is_special() {
            return Err(format!("page {page} has {entry:?} at {address:?}"));
        }
        mappings += 1;
        if *frame.get_or_insert(entry.pfn()) != entry.pfn() {
            return Err(format!("page {page} is {frame:?}, but {address:?} shows {:?}", entry.pfn()));
        }
    }
    let frame = frame.ok_or_else(|| format!("page {page} has no address"))?;
    if !seen.is_new(frame) {
        return Err(format!("page {page} shares {frame:?} with another page"));
    }
    let Some(descriptor) = memory().memmap().get(frame) else {
        return Err(format!("page {page} is {frame:?}, which has no descriptor"));
    };
    let references = mappings + u32::from(object.is_some());
    let counts = (descriptor.mapcount(), descriptor.refcount());
    if counts == (mappings, references) {
        return Ok(frame);
    }
    let expected = (mappings, references);
    Err(format!("page {page} has mappings and references {counts:?} on {frame:?}, expected {expected:?}"))
}

/// What is in use at a moment at which nothing else happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    free_frames: u64,
    page_tables: u64,
    table_bytes: u64,
}

impl Holdings {
    /// Counts, after everything that waits for its end has ended.
    pub fn count(mm: &Mm) -> Self {
        memory::settle();
        Self {
            free_frames: memory().frames().free_frames(X86),
            page_tables: memory().page_tables(),
            table_bytes: mm.linked_table_bytes(),
        }
    }
}

/// Checks that a round gave back all it took.
pub fn check_holdings(before: &Holdings, after: &Holdings, findings: &mut Findings) {
    findings.note(Property::Conserved, (before != after).then(|| format!("{before:?} became {after:?}")));
}
