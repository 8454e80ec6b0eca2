//! The layer that gives each page of a file with pages in several layers.
//!
//! The table is sparse in two levels: a leaf of 4 KiB has the owners of 2048 pages, and a leaf
//! exists where a page of it is set in a page map. It is built once, of the page maps from the
//! topmost layer down, so that finding the owner of a page costs the same at any number of layers.

use std::collections::BTreeMap;

use super::pages::PageMap;

/// Pages of a leaf.
const LEAF: u64 = 2048;

/// No page map has the page set.
const UNSET: u16 = 0;

/// The most parts with page maps that a table tells apart.
pub(super) const MOST_PARTS: usize = u16::MAX as usize - 1;

/// Owners of pages: the parts of a file by their index, topmost first. The part below the last one
/// that was pushed is whole, and owns every page that no other part does.
#[derive(Debug)]
pub(super) struct PageOwners {
    /// By page / [`LEAF`]: the index of the owner of each page plus one, or [`UNSET`].
    leaves: BTreeMap<u64, Box<[u16; LEAF as usize]>>,
    /// All pages from a page on are owned by a part unless they are set. Each page is lower than
    /// the one before.
    tails: Vec<(u64, usize)>,
    /// Bytes of each part that may show, from the start of the file.
    visible: Vec<u64>,
}

impl PageOwners {
    /// The table of a file that is one whole part.
    pub(super) fn new() -> PageOwners {
        PageOwners { leaves: BTreeMap::new(), tails: Vec::new(), visible: vec![u64::MAX] }
    }

    /// Puts the page map of the next lower part above the whole part, which is one further down
    /// then.
    pub(super) fn push(&mut self, map: &PageMap) {
        let part = self.whole();
        let end = self.tails.last().map_or(u64::MAX, |(page, _)| *page);
        let tail = map.base_pages();
        let stop = end.min(tail);
        let mut page = 0;
        while page < stop {
            let (own, count) = map.run(page, stop - page);
            let next = page.saturating_add(count.max(1)).min(stop);
            if own {
                self.set(page, next, part as u16 + 1);
            }
            page = next;
        }
        if tail < end {
            self.tails.push((tail, part));
        }
        self.visible.push(self.visible(part).min(map.lower_visible_len()));
    }

    /// The index of the whole part.
    pub(super) fn whole(&self) -> usize {
        self.visible.len() - 1
    }

    /// Bytes of a part that may show, from the start of the file. In its pages zeros show from
    /// there on.
    pub(super) fn visible(&self, part: usize) -> u64 {
        self.visible.get(part).copied().unwrap_or(0)
    }

    /// Sets the owner of the pages `from..to` that have none.
    fn set(&mut self, from: u64, to: u64, value: u16) {
        let mut page = from;
        while page < to {
            let end = to.min((page / LEAF + 1) * LEAF);
            let leaf =
                self.leaves.entry(page / LEAF).or_insert_with(|| Box::new([UNSET; LEAF as usize]));
            let part = leaf.get_mut((page % LEAF) as usize..).unwrap_or_default();
            let unset =
                part.iter_mut().take((end - page) as usize).filter(|owner| **owner == UNSET);
            unset.for_each(|owner| *owner = value);
            page = end;
        }
    }

    /// The owner of a page, and for how many pages from it on, `max` at most, that stays so.
    pub(super) fn run(&self, page: u64, max: u64) -> (usize, u64) {
        let stop = page.saturating_add(max.max(1));
        let value = self.value(page);
        let end = self.end_of_run(page, stop, value);
        if value != UNSET {
            return (usize::from(value) - 1, end - page);
        }
        let above = self.tails.partition_point(|(start, _)| *start > page);
        let owner = self.tails.get(above).map_or(self.whole(), |(_, part)| *part);
        let next = above.checked_sub(1).and_then(|index| self.tails.get(index));
        (owner, next.map_or(end, |(start, _)| end.min(*start)) - page)
    }

    fn value(&self, page: u64) -> u16 {
        let leaf = self.leaves.get(&(page / LEAF));
        leaf.and_then(|leaf| leaf.get((page % LEAF) as usize)).copied().unwrap_or(UNSET)
    }

    /// The first page from `from` on, below `stop`, whose value is another one; else `stop`.
    fn end_of_run(&self, from: u64, stop: u64, value: u16) -> u64 {
        let mut page = from;
        while page < stop {
            let Some(leaf) = self.leaves.get(&(page / LEAF)) else {
                if value != UNSET {
                    return page;
                }
                let next = self.leaves.range(page / LEAF..).next();
                page = next.map_or(stop, |(number, _)| number * LEAF);
                continue;
            };
            let rest = leaf.get((page % LEAF) as usize..).unwrap_or_default();
            match rest.iter().position(|owner| *owner != value) {
                Some(count) => return stop.min(page + count as u64),
                None => page += rest.len() as u64,
            }
        }
        stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_part_that_has_a_page_owns_it() {
        let mut owners = PageOwners::new();
        owners.visible = vec![u64::MAX, 5000 * 4096, 3000 * 4096];
        owners.tails = vec![(5000, 0), (3000, 1)];
        owners.set(10, 20, 1);
        owners.set(15, 2100, 2);
        assert_eq!(owners.run(0, 5), (2, 5));
        assert_eq!(owners.run(0, 50), (2, 10));
        assert_eq!(owners.run(10, 50), (0, 10));
        assert_eq!(owners.run(20, 9999), (1, 2080));
        assert_eq!(owners.run(2100, 9999), (2, 900));
        assert_eq!(owners.run(3000, 9999), (1, 2000));
        assert_eq!(owners.run(5000, 7), (0, 7));
        assert_eq!(owners.run(1 << 40, 7), (0, 7));
        assert_eq!((owners.whole(), owners.visible(2)), (2, 3000 * 4096));
    }
}
