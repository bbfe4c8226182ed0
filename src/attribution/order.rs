//! Sorting, with one copy of the code for all that is sorted here.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::cmp::Ordering;

/// By key, the largest first; what is equal stays in its order.
pub(super) fn descending<T>(items: Vec<T>, key: impl Fn(&T) -> f64) -> Vec<T> {
    let keys = items.iter().enumerate();
    let sorted = sort(keys.map(|(at, item)| Place(key(item), at)).collect());
    let mut items: Vec<Option<T>> = items.into_iter().map(Some).collect();
    let next = |place: Place| items.get_mut(place.1).and_then(Option::take);
    sorted.into_iter().filter_map(next).collect()
}

/// A heap sort: what is sorted is short, and the standard library's sort is 5 KB.
#[inline(never)]
fn sort(places: Vec<Place>) -> Vec<Place> {
    BinaryHeap::from(places).into_sorted_vec()
}

/// A key, and where its item was. The largest key is the least.
struct Place(f64, usize);

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.total_cmp(&self.0).then(self.1.cmp(&other.1))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Place {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_equal_stays_in_its_order() {
        let items = vec![(1.0, "a"), (2.0, "b"), (1.0, "c"), (3.0, "d")];
        let sorted: Vec<&str> = descending(items, |item| item.0)
            .iter()
            .map(|item| item.1)
            .collect();
        assert_eq!(sorted, ["d", "b", "a", "c"]);
    }
}
