//! How the words of an enum that derives [`Deserialize`] are read.
//!
//! Its derive would accept `{"word": null}` for a word, too, and not say which are allowed
//! where it finds a number. So the words are asked of it, and then the variant by the
//! index of its word.

use super::read::{Scalar, scalar};
use serde::de::value::{StrDeserializer, U32Deserializer};
use serde::de::{Deserialize, Deserializer, Error, Expected, StdError, Unexpected};
use std::fmt;

/// Reads a word.
pub(super) fn word<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: for<'a> Deserialize<'a>,
{
    let index = index(from, Words::of::<T>())?;
    variant(index).ok_or_else(|| D::Error::custom("no variant"))
}

/// The variant of a word.
pub(super) fn one_of<T: for<'a> Deserialize<'a>>(word: Scalar<'_>) -> Option<T> {
    variant(Words::of::<T>().index(word)?)
}

fn index<'de, D: Deserializer<'de>>(from: D, words: Words) -> Result<u32, D::Error> {
    let mut index = 0;
    let mut accept = |_: &str, word: Scalar<'_>| {
        index = words.index(word).ok_or(None)?;
        Ok(())
    };
    scalar(from, &words, &mut accept)?;
    Ok(index)
}

fn variant<T: for<'a> Deserialize<'a>>(index: u32) -> Option<T> {
    T::deserialize(U32Deserializer::<Words>::new(index)).ok()
}

/// The words of an enum, in the order of its variants: what serde's derive tells its
/// error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words(&'static [&'static str]);

impl Words {
    /// Those of this one.
    pub(super) fn of<T: for<'a> Deserialize<'a>>() -> Self {
        match T::deserialize(StrDeserializer::<Self>::new("")) {
            Ok(_) => Self(&[]),
            Err(words) => words,
        }
    }

    fn index(self, word: Scalar<'_>) -> Option<u32> {
        let Scalar::Text(word) = word else {
            return None;
        };
        let index = self.0.iter().position(|other| *other == word)?;
        u32::try_from(index).ok()
    }
}

impl fmt::Display for Words {
    /// As in "this", "that" or "other", each in quotes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, word) in self.0.iter().enumerate() {
            f.write_str(match n {
                0 => "",
                _ if n + 1 == self.0.len() => " or ",
                _ => ", ",
            })?;
            write!(f, "\"{word}\"")?;
        }
        Ok(())
    }
}

impl StdError for Words {}

impl Error for Words {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self(expected)
    }

    fn invalid_type(_: Unexpected<'_>, _: &dyn Expected) -> Self {
        Self(&[])
    }

    fn invalid_value(_: Unexpected<'_>, _: &dyn Expected) -> Self {
        Self(&[])
    }
}
