//! Cells of the time, and how much likelier a call is in one than at any time.
//!
//! The time is divided into cells by what the only request is doing. A lift is a ratio of
//! probabilities: that a call comes in a cell, against the share of the time that the cell
//! has. Requests make their calls in few cells; a background fills them as the time does.

use super::super::buckets::BUCKETS;

/// The share of a request's calls that come at any time (the machine was busy). As large a
/// share comes where calls of other kinds come.
pub(super) const ANY_TIME: f32 = 0.05;
/// The weight of the prior, in calls: of all kinds, which are taken to come as the time is
/// spent; and of one kind, which are taken to come where calls of all kinds do.
pub(super) const PRIOR_ALL: f32 = 6.0;
pub(super) const PRIOR_KIND: f32 = 2.5;
/// That no call was seen in a cell says little where so few were to be expected: of all
/// kinds, and of one.
pub(super) const SPARSE: f32 = 0.5;
pub(super) const SPARSE_KIND: f32 = 0.1;
/// A cell for the time in which nothing is in flight; then, for requests that overlapped
/// others, cells by the time since the last event; then, for the rest, by the calls that
/// were made and whether one is outstanding, too.
pub(super) const IDLE: usize = 0;
pub(super) const CELLS: usize = 1 + BUCKETS * 7;
pub(super) const OVERLAPPED_CELLS: std::ops::Range<usize> = 1..1 + BUCKETS;

pub(super) fn get(values: &[f32], at: usize) -> f32 {
    values.get(at).copied().unwrap_or(0.0)
}

pub(super) fn add(values: &mut [f32], at: usize, value: f32) {
    if let Some(sum) = values.get_mut(at) {
        *sum += value;
    }
}

/// Counts by cell, of which most are 0 and not listed.
pub(super) type Counts = Vec<(u8, f32)>;

pub(super) fn count_at(counts: &[(u8, f32)], at: usize) -> f32 {
    let found = counts.iter().find(|(cell, _)| usize::from(*cell) == at);
    found.map_or(0.0, |(_, count)| *count)
}

/// The count of a cell, smoothed with those beside it: of the same state and the next earlier
/// and later times, but for the first and the last.
pub(super) fn smoothed(counts: &[(u8, f32)], at: usize) -> f32 {
    let beside = count_at(counts, at.wrapping_sub(1)) + count_at(counts, at + 1);
    0.5 * count_at(counts, at) + 0.25 * beside
}

pub(super) fn increment(counts: &mut Counts, at: usize) {
    match counts.iter_mut().find(|(cell, _)| usize::from(*cell) == at) {
        Some((_, count)) => *count += 1.0,
        None => counts.push((at as u8, 1.0)),
    }
}

/// The lift of a cell. `share`: of the time. `busy`: the share of the time in which there are
/// requests. `all` and `of_kind`: calls in the cell, and in all cells, of all kinds and of
/// one.
pub(super) fn lift(share: f32, busy: f32, all: [f32; 2], of_kind: [f32; 2]) -> f32 {
    let ([here, sum], [here_of_kind, sum_of_kind]) = (all, of_kind);
    let prior = share / busy.max(share);
    let any_kind = (here + PRIOR_ALL * prior) / (sum + PRIOR_ALL);
    let any_kind = any_kind.max(share * SPARSE / (sum * share + SPARSE));
    let kind = (here_of_kind + PRIOR_KIND * any_kind) / (sum_of_kind + PRIOR_KIND);
    ANY_TIME * (1.0 + any_kind / share) + (1.0 - 2.0 * ANY_TIME) * kind / share
}
