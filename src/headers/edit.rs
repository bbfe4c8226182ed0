//! Changes to the headers of a request, and whether there is room for them.

use super::TraceHeaders;
use std::borrow::Cow;

/// A change to the headers of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Replace every value of the header by this one, or add it.
    Set(Cow<'static, str>, Vec<u8>),
    /// Add a further value.
    Add(Cow<'static, str>, Vec<u8>),
    /// Remove every value of the header.
    Remove(Cow<'static, str>),
}

impl Edit {
    /// Replace or add.
    pub fn set(name: impl Into<Cow<'static, str>>, value: impl Into<Vec<u8>>) -> Self {
        Self::Set(name.into(), value.into())
    }

    /// Remove.
    pub fn remove(name: impl Into<Cow<'static, str>>) -> Self {
        Self::Remove(name.into())
    }

    /// The header that changes.
    pub fn name(&self) -> &str {
        match self {
            Self::Set(name, _) | Self::Add(name, _) | Self::Remove(name) => name,
        }
    }

    /// Applies the edit to headers held as pairs, as Envoy's header map does:
    /// a replaced header keeps the place of its first value.
    pub fn apply(&self, headers: &mut Vec<(String, Vec<u8>)>) {
        let named = |(name, _): &(String, Vec<u8>)| name == self.name();
        match self {
            Self::Set(name, value) => match headers.iter().position(named) {
                Some(at) => {
                    let mut index = 0;
                    headers.retain(|pair| {
                        let keep = !named(pair) || index == at;
                        index += 1;
                        keep
                    });
                    if let Some(pair) = headers.get_mut(at) {
                        pair.1.clone_from(value);
                    }
                }
                None => headers.push((name.to_string(), value.clone())),
            },
            Self::Add(name, value) => headers.push((name.to_string(), value.clone())),
            Self::Remove(_) => headers.retain(|pair| !named(pair)),
        }
    }
}

/// How large the headers of a request are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// How many.
    pub headers: usize,
    /// Of names and values.
    pub bytes: usize,
}

impl Size {
    /// What may be sent without being refused by the next proxy: Envoy takes 100
    /// headers and 60 KiB (`max_headers_count`, `max_request_headers_kb`), and its
    /// router adds some of its own.
    const MOST: Self = Self {
        headers: 95,
        bytes: 58 * 1024,
    };

    fn of<'a>(pairs: impl IntoIterator<Item = &'a (&'a [u8], &'a [u8])>) -> Self {
        let pairs = pairs.into_iter();
        pairs.fold(Self::default(), |size, (name, value)| Self {
            headers: size.headers + 1,
            bytes: size.bytes + name.len() + value.len(),
        })
    }
}

impl TraceHeaders<'_> {
    /// After this edit the request has the header once, with this value. One that it
    /// lacks is added: to replace it costs Envoy a third more.
    pub fn edit(&self, name: &'static str, value: impl Into<Vec<u8>>) -> Edit {
        match self.has(name) {
            true => Edit::set(name, value),
            false => Edit::Add(name.into(), value.into()),
        }
    }

    /// The next proxy takes the request with these edits, or they make it no larger.
    pub fn has_room(&self, edits: &[Edit]) -> bool {
        if edits.is_empty() {
            return true;
        }
        let before = Size::of(&self.all);
        let replaced = |name: &[u8]| {
            let mut edits = edits.iter();
            edits.any(|edit| !matches!(edit, Edit::Add(..)) && edit.name().as_bytes() == name)
        };
        let mut after = Size::of(self.all.iter().filter(|(name, _)| !replaced(name)));
        for edit in edits {
            if let Edit::Set(name, value) | Edit::Add(name, value) = edit {
                after.headers += 1;
                after.bytes += name.len() + value.len();
            }
        }
        after.headers <= Size::MOST.headers.max(before.headers)
            && after.bytes <= Size::MOST.bytes.max(before.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::Wanted;

    #[test]
    fn set_replaces_every_value_in_place() {
        let mut headers = vec![
            ("a".to_string(), b"1".to_vec()),
            ("b".to_string(), b"2".to_vec()),
            ("a".to_string(), b"3".to_vec()),
        ];
        Edit::set("a", "x").apply(&mut headers);
        assert_eq!(
            headers,
            [("a".into(), b"x".to_vec()), ("b".into(), b"2".to_vec())]
        );
        Edit::remove("a").apply(&mut headers);
        Edit::set("c", "y").apply(&mut headers);
        assert_eq!(
            headers,
            [("b".into(), b"2".to_vec()), ("c".into(), b"y".to_vec())]
        );
    }
    /// What is replaced or removed takes no room.
    #[test]
    fn there_is_room_for_what_takes_the_place_of_others() {
        let large = vec![b'x'; Size::MOST.bytes];
        let pairs: [(&[u8], &[u8]); 2] = [(b"b3", b"0"), (b"large", &large)];
        let headers = TraceHeaders::read(pairs, &Wanted::default());
        assert!(headers.has_room(&[]));
        assert!(headers.has_room(&[Edit::set("b3", "1")]));
        assert!(headers.has_room(&[Edit::remove("b3"), Edit::Add("b".into(), b"12".to_vec())]));
        assert!(!headers.has_room(&[Edit::Add("b3".into(), b"1".to_vec())]));
        assert!(!headers.has_room(&[Edit::set("b3", "11")]));
        assert!(headers.has_room(&[Edit::remove("large"), Edit::set("b3", "11")]));
    }
}
