//! Times in buckets: half octaves, since what differs is whether something takes
//! 100 µs or 10 ms, and not whether it takes 10 ms or 10.1 ms.

/// Buckets: the first ends at 32 µs, the last is everything beyond half a second.
pub(super) const BUCKETS: usize = 29;
const FIRST_US: u64 = 32;

/// The bucket of a time in microseconds.
pub(super) fn bucket(us: u64) -> usize {
    let ratio = us / FIRST_US;
    if ratio == 0 {
        return 0;
    }
    let octave = ratio.ilog2() as usize;
    // The upper half of an octave begins at the square root of two.
    let upper = us.saturating_mul(us) >= (FIRST_US << octave).saturating_pow(2).saturating_mul(2);
    (1 + 2 * octave + usize::from(upper)).min(BUCKETS - 1)
}

/// Where a bucket begins, in milliseconds.
pub(super) fn begin_ms(bucket: usize) -> f32 {
    const FIRST_MS: f32 = FIRST_US as f32 / 1000.0;
    match bucket.checked_sub(1) {
        None => 0.0,
        Some(n) => {
            let octave = FIRST_MS * (1u32 << (n / 2)) as f32;
            if n % 2 == 0 {
                octave
            } else {
                octave * std::f32::consts::SQRT_2
            }
        }
    }
}

pub(super) fn ms(us: u64) -> f32 {
    us as f32 / 1000.0
}

/// The buckets from one time to another, with the milliseconds in each.
pub(super) fn spans(from_us: u64, to_us: u64) -> impl Iterator<Item = (usize, f32)> {
    let (first, last) = (bucket(from_us), bucket(to_us));
    (first..=last).map(move |at| {
        let begin = if at == first {
            ms(from_us)
        } else {
            begin_ms(at)
        };
        let end = if at == last {
            ms(to_us)
        } else {
            begin_ms(at + 1)
        };
        (at, (end - begin).max(0.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_meet() {
        for us in 0..2_000_000u64 {
            let at = bucket(us);
            assert!(begin_ms(at) <= ms(us) + 1e-3, "{us}");
            assert!(
                at == BUCKETS - 1 || ms(us) < begin_ms(at + 1) + 1e-3,
                "{us}"
            );
        }
    }
}
