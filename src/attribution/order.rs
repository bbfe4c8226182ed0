//! Sorting, with one copy of the code for all that is sorted here.

/// By key, the largest first; what is equal stays in its order.
pub(super) fn descending<T>(items: Vec<T>, key: impl Fn(&T) -> f64) -> Vec<T> {
    let keys = items.iter().enumerate();
    let mut keys: Vec<(f64, usize)> = keys.map(|(at, item)| (key(item), at)).collect();
    sort(&mut keys);
    let mut items: Vec<Option<T>> = items.into_iter().map(Some).collect();
    let next = |(_, at): (f64, usize)| items.get_mut(at).and_then(Option::take);
    keys.into_iter().filter_map(next).collect()
}

#[inline(never)]
fn sort(keys: &mut [(f64, usize)]) {
    keys.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
}

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
