//! Small numbers for routes and for kinds of calls, so that what is known of each is
//! found by an index, and is bounded.

/// Names at most.
const NAMES_MOST: usize = 255;
/// An array with one item for each name, 0 included, has this length.
pub(super) const NAMES: usize = NAMES_MOST + 1;
/// Names of one class at most, the class's own among them.
const NAMES_OF_CLASS: usize = 24;
/// A name of a class of many is not taken from another hash that came within so many uses:
/// with fewer, names would go round among the kinds that are in use, and nothing be learned.
const USED_LATELY: u64 = 4096;
/// A hash that came so often is not forgotten for one that has come for the first time.
const USED_OFTEN: u8 = 8;

/// A small number for a route or a kind of call. 0 stands for all of them together.
pub type Name = u8;

/// A hash that has a name.
#[derive(Clone, Copy, Debug)]
struct Named {
    hash: u32,
    /// A coarser hash, of several names.
    class: u32,
    /// How often it came, up to `USED_OFTEN`, and when it last did.
    uses: u8,
    used: u64,
}

impl Named {
    fn is_used_lately(&self, clock: u64) -> bool {
        clock - self.used < USED_LATELY
    }
}

/// Gives small numbers to hashes. When there are no more, the one goes that has not been
/// used for longest; of those that came a few times first, as long as there are many, unless
/// another one has not been used lately.
#[derive(Debug, Default)]
pub(super) struct Names {
    names: Vec<Named>,
    clock: u64,
}

impl Names {
    /// The name of a hash, and whether it was taken from another hash.
    pub(super) fn of(&mut self, hash: u32, class: u32) -> (Name, bool) {
        self.clock += 1;
        let used = self.clock;
        let name = |at: usize| u8::try_from(at + 1).unwrap_or(0);
        if let Some(at) = self.names.iter().position(|known| known.hash == hash) {
            if let Some(known) = self.names.get_mut(at) {
                known.used = used;
                known.uses = known.uses.saturating_add(1).min(USED_OFTEN);
            }
            return (name(at), false);
        }
        let new = Named {
            hash,
            class,
            uses: 1,
            used,
        };
        if self.names.len() < NAMES_MOST {
            self.names.push(new);
            return (name(self.names.len() - 1), false);
        }
        let rarely = |known: &Named| known.uses < USED_OFTEN;
        let all = self.names.iter().filter(|known| rarely(known)).count() < NAMES_MOST / 4;
        let goes = |known: &Named| all || rarely(known) || !known.is_used_lately(used);
        let names = self.names.iter_mut().enumerate();
        let oldest = names
            .filter(|(_, known)| goes(known))
            .min_by_key(|(_, known)| known.used);
        let Some((at, known)) = oldest else {
            return (0, false);
        };
        *known = new;
        (name(at), true)
    }

    /// The name of the first hash; or of the second, its class, if that has many names
    /// already, or all names are in use: of each one then little would be seen.
    pub(super) fn of_class(&mut self, [hash, class]: [u32; 2]) -> (Name, bool) {
        let is_known = self.names.iter().any(|known| known.hash == hash);
        let others = || self.names.iter().filter(|known| known.class == class);
        let all_in_use = || {
            self.names
                .iter()
                .all(|known| known.is_used_lately(self.clock))
        };
        let is_room = || self.names.len() < NAMES_MOST || !all_in_use();
        if is_known || (others().count() < NAMES_OF_CLASS && is_room()) {
            self.of(hash, class)
        } else {
            self.of(class, class)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a class that has many names, a further one has that of its class; and other classes
    /// have names of their own.
    #[test]
    fn many_of_a_class_share_its_name() {
        let mut names = Names::default();
        let class = names.of(1000, 1000).0;
        let shared: Vec<bool> = (0..40)
            .map(|n| names.of_class([n, 1000]).0 == class)
            .collect();
        let own = NAMES_OF_CLASS - 1;
        assert_eq!(shared, (0..40).map(|n| n >= own).collect::<Vec<_>>());
        // Those that have a name keep it.
        let before = names.of_class([3, 1000]);
        assert!(before.0 != class && !before.1);
        let other = names.of_class([100, 2000]).0;
        assert!(other != class && names.of_class([101, 2000]).0 != other);
    }

    /// What comes often keeps its name, whatever comes once.
    #[test]
    fn what_comes_once_takes_no_name_from_what_came_often() {
        let mut names = Names::default();
        let often = |names: &mut Names| (0..100).map(|n| names.of(n, n)).collect::<Vec<_>>();
        let first = often(&mut names);
        for _ in 1..USED_OFTEN {
            assert_eq!(often(&mut names), first);
        }
        for n in 1000..2000 {
            let (name, _) = names.of(n, n);
            assert!(name > 0 && !first.contains(&(name, false)));
        }
        assert_eq!(often(&mut names), first);
    }

    /// However many kinds of one or two hundred classes are in use.
    #[test]
    fn names_do_not_go_round_among_kinds() {
        for (classes, kinds) in [(200, 4), (40, 10), (12, 100)] {
            let mut names = Names::default();
            for round in 0..20 {
                let mut reused = 0;
                for class in 1..=classes {
                    for kind in 0..kinds {
                        let (_, of_class) = names.of(class, class);
                        let (_, of_kind) = names.of_class([10_000 * class + kind, class]);
                        reused += u32::from(of_class) + u32::from(of_kind);
                    }
                }
                assert!(round < 10 || reused == 0, "{reused} in {round}");
            }
        }
    }

    /// However often it came, and however rarely the others.
    #[test]
    fn what_is_used_no_more_goes_first() {
        let mut names = Names::default();
        for n in 0..NAMES_MOST as u32 {
            names.of(n, n);
        }
        let of_class = |names: &mut Names| names.of_class([5000, 7]);
        assert_eq!(of_class(&mut names), (8, false), "that of its class");
        names.clock += USED_LATELY;
        let now = names.clock;
        names.names.iter_mut().for_each(|known| known.used = now);
        names.names[100].used = 0;
        names.names[100].uses = USED_OFTEN;
        assert_eq!(of_class(&mut names), (101, true));
    }

    /// If nearly all came often, the one goes that has not come for longest.
    #[test]
    fn what_has_not_come_for_longest_makes_room() {
        let mut names = Names::default();
        for _ in 0..=USED_OFTEN {
            for n in 0..NAMES_MOST as u32 {
                names.of(n, n);
            }
        }
        let oldest = names.of(0, 0).0 + 1;
        assert_eq!(names.of(5000, 5000), (oldest, true));
        assert_eq!(names.of(5001, 5001), (oldest + 1, true));
    }
}
