//! The reference model: an address space as a plain map from page to content and right.

use crate::address_space::MapError;
use crate::fault::FaultError;
use std::collections::BTreeMap;
use std::ops::Range;

/// Contents of memory objects: of each by page.
pub(in crate::testing) type Objects = Vec<BTreeMap<u64, u64>>;

/// What backs a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::testing) enum Kind {
    /// The page holds what this address space stored.
    Private,
    /// The same, in an explicit huge page of so many small ones.
    Huge(u64),
    /// A page of an object.
    Object { number: usize, page: u64 },
}

impl Kind {
    /// Of the page that lies `pages` further on in a region.
    fn advanced(self, pages: u64) -> Self {
        match self {
            Self::Object { number, page } => Self::Object { number, page: page + pages },
            other => other,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::testing) struct Page {
    /// Which region it is in. One that is cut becomes two; none are ever merged.
    region: u64,
    pub(in crate::testing) kind: Kind,
    pub(in crate::testing) write: bool,
    /// What it holds, unless that is the object's affair.
    value: u64,
}

/// What an address space must show, and what its operations must answer.
#[derive(Clone, Default)]
pub(in crate::testing) struct Model {
    pages: BTreeMap<u64, Page>,
    regions: u64,
}

impl Model {
    pub(in crate::testing) fn page(&self, at: u64) -> Option<&Page> {
        self.pages.get(&at)
    }

    /// Pages that hold something of this address space's own.
    pub(in crate::testing) fn written(&self) -> impl Iterator<Item = u64> {
        self.pages.iter().filter(|(_, page)| page.value != 0).map(|(number, _)| *number)
    }

    pub(in crate::testing) fn read(&self, at: u64, objects: &Objects) -> Result<u64, FaultError> {
        let page = self.pages.get(&at).ok_or(FaultError::NotMapped)?;
        Ok(match page.kind {
            Kind::Object { number, page } => objects[number].get(&page).copied().unwrap_or(0),
            Kind::Private | Kind::Huge(_) => page.value,
        })
    }

    pub(in crate::testing) fn write(&mut self, at: u64, value: u64, objects: &mut Objects) -> Result<(), FaultError> {
        let page = self.pages.get_mut(&at).ok_or(FaultError::NotMapped)?;
        if !page.write {
            return Err(FaultError::Forbidden);
        }
        match page.kind {
            Kind::Object { number, page } => {
                objects[number].insert(page, value);
            }
            Kind::Private | Kind::Huge(_) => page.value = value,
        }
        Ok(())
    }

    pub(in crate::testing) fn map(
        &mut self,
        range: Range<u64>,
        write: bool,
        kind: Kind,
        object_pages: u64,
    ) -> Result<(), MapError> {
        if let Kind::Object { page, .. } = kind
            && page + (range.end - range.start) > object_pages
        {
            return Err(MapError::BeyondObject);
        }
        if !self.is_free(range.clone()) {
            return Err(MapError::Overlap);
        }
        if let Kind::Huge(size) = kind
            && (range.start % size, range.end % size) != (0, 0)
        {
            return Err(MapError::CutsHugePage);
        }
        let region = self.new_region();
        let first = range.start;
        let page = |number| Page { region, kind: kind.advanced(number - first), write, value: 0 };
        self.pages.extend(range.map(|number| (number, page(number))));
        Ok(())
    }

    pub(in crate::testing) fn unmap(&mut self, range: Range<u64>) -> Result<(), MapError> {
        self.check_huge_pages(&range)?;
        self.cut(range.end);
        self.pages.retain(|number, _| !range.contains(number));
        Ok(())
    }

    pub(in crate::testing) fn protect(&mut self, range: Range<u64>, write: bool) -> Result<(), MapError> {
        self.check_huge_pages(&range)?;
        self.check_mapped(&range)?;
        self.cut(range.start);
        self.cut(range.end);
        self.pages.range_mut(range).for_each(|(_, page)| page.write = write);
        Ok(())
    }

    pub(in crate::testing) fn discard(&mut self, range: Range<u64>) -> Result<(), MapError> {
        self.check_mapped(&range)?;
        self.check_huge_pages(&range)?;
        self.pages.range_mut(range).for_each(|(_, page)| page.value = 0);
        Ok(())
    }

    pub(in crate::testing) fn remap(
        &mut self,
        old: Range<u64>,
        new: Range<u64>,
        object_pages: u64,
    ) -> Result<(), MapError> {
        let first = *self.pages.get(&old.start).ok_or(MapError::NotMapped)?;
        let inside = self.pages.range(old.clone()).filter(|(_, page)| page.region == first.region).count();
        if inside as u64 != old.end - old.start {
            return Err(MapError::NotMapped);
        }
        let shrinks = new.start == old.start && new.end <= old.end;
        match first.kind {
            Kind::Object { page, .. } if page + (new.end - new.start) > object_pages => {
                return Err(MapError::BeyondObject);
            }
            Kind::Huge(_) if !shrinks => return Err(MapError::CutsHugePage),
            _ => (),
        }
        if shrinks {
            return if new.end == old.end { Ok(()) } else { self.unmap(new.end..old.end) };
        }
        let fresh = |number| Page { value: 0, kind: first.kind.advanced(number), ..first };
        if new.start == old.start {
            if !self.is_free(old.end..new.end) {
                return Err(MapError::Overlap);
            }
            self.pages.extend((old.end..new.end).map(|number| (number, fresh(number - old.start))));
            return Ok(());
        }
        if new.start < old.end && old.start < new.end {
            return Err(MapError::BadRange);
        }
        if !self.is_free(new.clone()) {
            return Err(MapError::Overlap);
        }
        self.cut(old.end);
        let region = self.new_region();
        let target = new.start;
        for to in new {
            let from = self.pages.get(&(old.start + (to - target))).filter(|_| to - target < old.end - old.start);
            let value = from.map_or(0, |page| page.value);
            self.pages.insert(to, Page { region, value, ..fresh(to - target) });
        }
        self.pages.retain(|number, _| !old.contains(number));
        Ok(())
    }

    /// What a child shows: everything but explicit huge pages.
    pub(in crate::testing) fn fork(&self) -> Self {
        let mut child = self.clone();
        child.pages.retain(|_, page| !matches!(page.kind, Kind::Huge(_)));
        child
    }

    /// Whether `span` lies in one region of private memory.
    pub(in crate::testing) fn is_one_private_region(&self, span: Range<u64>) -> bool {
        let region = self.pages.get(&span.start).map(|page| page.region);
        let belongs = |page: &Page| Some(page.region) == region && page.kind == Kind::Private;
        self.pages.range(span.clone()).filter(|(_, page)| belongs(page)).count() as u64 == span.end - span.start
    }

    fn is_free(&self, range: Range<u64>) -> bool {
        self.pages.range(range).next().is_none()
    }

    fn check_mapped(&self, range: &Range<u64>) -> Result<(), MapError> {
        let whole = self.pages.range(range.clone()).count() as u64 == range.end - range.start;
        if whole { Ok(()) } else { Err(MapError::NotMapped) }
    }

    /// Explicit huge pages are never cut.
    fn check_huge_pages(&self, range: &Range<u64>) -> Result<(), MapError> {
        let cuts = |inside: u64, border: u64| match self.pages.get(&inside).map(|page| page.kind) {
            Some(Kind::Huge(size)) => !border.is_multiple_of(size),
            _ => false,
        };
        let is_cut = cuts(range.start, range.start) || cuts(range.end - 1, range.end);
        if is_cut { Err(MapError::CutsHugePage) } else { Ok(()) }
    }

    /// A region that reaches over both sides of page `at` becomes two.
    fn cut(&mut self, at: u64) {
        let (below, above) = (self.pages.get(&(at - 1)), self.pages.get(&at));
        if let (Some(below), Some(above)) = (below, above)
            && below.region == above.region
        {
            let whole = above.region;
            let new = self.new_region();
            let right = self.pages.range_mut(at..).filter(|(_, page)| page.region == whole);
            right.for_each(|(_, page)| page.region = new);
        }
    }

    fn new_region(&mut self) -> u64 {
        self.regions += 1;
        self.regions
    }
}
