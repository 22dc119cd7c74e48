//! What earlier rows held: ids, texts, and texts that are nearly the same.

use super::groups::Groups;
use super::{Place, Row};
use crate::report::Report;
use lru::LruCache;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// SHA-256 of a text.
pub(super) type TextHash = [u8; 32];

pub(super) fn text_hash(report: &Report) -> TextHash {
    Sha256::digest(report.text().as_bytes()).into()
}

/// What a row has in common with earlier ones. It depends on nothing but the
/// rows before it, so that a run that is resumed finds the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    /// The first row with the same id: its input's name and its number.
    pub(super) duplicate_id: Option<(Arc<str>, u64)>,
    /// What the first row with the same text is called.
    pub(super) duplicate_of: Option<Arc<str>>,
    /// What the first row of the group is called.
    pub(super) group: Option<Arc<str>>,
}

/// Memory of rows, bounded however many there are.
pub(super) struct Seen {
    ids: Ids,
    texts: Option<LruCache<TextHash, Arc<str>>>,
    groups: Option<Groups>,
}

/// A repeat is found if there are fewer different texts than this since the
/// text last stood: some 30 MB.
const MAX_TEXTS: NonZeroUsize = NonZeroUsize::new(200_000).unwrap();

impl Seen {
    pub(super) fn new(repeats: bool, groups: bool) -> Self {
        Self {
            ids: Ids::default(),
            texts: repeats.then(|| LruCache::new(MAX_TEXTS)),
            groups: groups.then(Groups::default),
        }
    }

    /// Takes note of a row whose report has the hash.
    pub(super) fn note(&mut self, row: &Row, hash: &TextHash) -> Marks {
        let Ok(report) = &row.report else {
            return Marks::default();
        };
        let place = &row.place;
        let name = || -> Arc<str> {
            match report.id() {
                Some(id) => id.into(),
                None => format!("{} row {}", place.input, place.row).into(),
            }
        };
        let duplicate_id = report.id().and_then(|id| self.ids.first(id, place));
        let mut duplicate_of = None;
        if let Some(texts) = &mut self.texts {
            duplicate_of = texts.get(hash).cloned();
            if duplicate_of.is_none() {
                texts.put(*hash, name());
            }
        }
        let group = self.groups.as_mut();
        Marks {
            duplicate_id,
            duplicate_of,
            group: group.map(|groups| groups.find(report.text(), name)),
        }
    }
}

/// Which ids have been seen where. It keeps hashes, not ids, so that a row
/// takes some 20 bytes however long its id is; among a million different ids
/// the chance of a false alarm is less than one in ten million.
#[derive(Default)]
struct Ids {
    hasher: RandomState,
    /// By hash: the place in `inputs`, and the row.
    first: HashMap<u64, (u32, u32)>,
    inputs: Vec<Arc<str>>,
}

/// So many ids are remembered, the first ones: some 36 MB.
const MAX_IDS: usize = 1_800_000;

impl Ids {
    /// The first row with an id, unless it is this one.
    fn first(&mut self, id: &str, place: &Place) -> Option<(Arc<str>, u64)> {
        let is_full = self.first.len() >= MAX_IDS;
        if self.inputs.last() != Some(&place.input) && !is_full {
            self.inputs.push(place.input.clone());
        }
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        match self.first.entry(self.hasher.hash_one(id)) {
            Entry::Vacant(entry) => {
                if !is_full {
                    entry.insert((small(self.inputs.len() as u64 - 1), small(place.row)));
                }
                None
            }
            Entry::Occupied(entry) => {
                let (input, row) = *entry.get();
                Some((self.inputs.get(input as usize)?.clone(), row.into()))
            }
        }
    }
}
