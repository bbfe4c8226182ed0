//! Cells of the time, and how much likelier a call is in one than at any time.

use super::super::buckets::BUCKETS;

/// The part of a request's calls that come anywhere, since the machine was busy; and as
/// many come where others do.
pub(super) const ANYWHERE: f32 = 0.05;
/// Calls of any kind, and of one, that are taken for seen where the time is, and where
/// calls of any kind are.
pub(super) const ANY: f32 = 6.0;
pub(super) const OWN: f32 = 2.5;
/// None seen says little where so many or fewer were to be expected: for all kinds, and
/// for one.
pub(super) const SPARSE: f32 = 0.5;
pub(super) const SPARSE_OWN: f32 = 0.1;
/// A cell for the time in which nothing is in flight; by the time since the last event,
/// for requests of which not all was seen; and for others by calls made and outstanding.
pub(super) const IDLE: usize = 0;
pub(super) const CELLS: usize = 1 + BUCKETS * 7;
pub(super) const MIXED_CELLS: std::ops::Range<usize> = 1..1 + BUCKETS;

pub(super) fn get(values: &[f32], at: usize) -> f32 {
    values.get(at).copied().unwrap_or(0.0)
}

pub(super) fn add(values: &mut [f32], at: usize, value: f32) {
    if let Some(sum) = values.get_mut(at) {
        *sum += value;
    }
}

pub(super) fn of(list: &[(u8, f32)], at: usize) -> f32 {
    let found = list.iter().find(|(known, _)| usize::from(*known) == at);
    found.map_or(0.0, |(_, count)| *count)
}

/// With a share of the neighbours', which are the next earlier and later times but for the
/// first and the last.
pub(super) fn around(list: &[(u8, f32)], at: usize) -> f32 {
    0.5 * of(list, at) + 0.25 * (of(list, at.wrapping_sub(1)) + of(list, at + 1))
}

pub(super) fn count(list: &mut Vec<(u8, f32)>, at: usize) {
    match list.iter_mut().find(|(known, _)| usize::from(*known) == at) {
        Some((_, count)) => *count += 1.0,
        None => list.push((at as u8, 1.0)),
    }
}

/// How much likelier a call is in a cell, with this part of the time, than at any time:
/// `calls` and `own`, of a kind, are those in the cell and all of them.
pub(super) fn lift(part: f32, busy: f32, calls: [f32; 2], own: [f32; 2]) -> f32 {
    let ([here, all], [own, all_own]) = (calls, own);
    let before = part / busy.max(part);
    let any = (here + ANY * before) / (all + ANY);
    let any = any.max(part * SPARSE / (all * part + SPARSE));
    let own = (own + OWN * any) / (all_own + OWN);
    ANYWHERE * (1.0 + any / part) + (1.0 - 2.0 * ANYWHERE) * own / part
}
