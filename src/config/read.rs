//! How values are read with serde.
//!
//! There is one visitor for all of them, which is told what is allowed, so that its
//! error can say it. serde's own errors (`invalid_type`) would do so in the same
//! places, but bring the module 40 KB for writing fractions.

use super::error::cut;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, Expected};
use serde::de::{MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// A JSON value that holds no others.
#[derive(Clone, Copy)]
pub(super) enum Scalar<'a> {
    Null,
    Bool(bool),
    Number(f64),
    Text(&'a str),
}

impl fmt::Display for Scalar<'_> {
    /// As JSON, but for numbers that are neither whole nor a share.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Null => f.write_str("null"),
            Self::Bool(true) => f.write_str("true"),
            Self::Bool(false) => f.write_str("false"),
            Self::Number(number) if (number as i64) as f64 == number => {
                // No other text has an i64: the module would have a second way to write numbers.
                let sign = if number < 0.0 { "-" } else { "" };
                write!(f, "{sign}{}", (number as i64).unsigned_abs())
            }
            Self::Number(number @ 0.000_001..0.999_999_5) => {
                let (mut digits, mut places) = ((number * 1e6 + 0.5) as u32, 6);
                while digits % 10 == 0 && places > 0 {
                    (digits, places) = (digits / 10, places - 1);
                }
                write!(f, "0.{digits:0places$}")
            }
            Self::Number(_) => f.write_str("a fraction or a very large number"),
            Self::Text(text) => write!(f, "\"{}\"", cut(text)),
        }
    }
}

/// Whether a value was accepted. If not, why, where the words for what is allowed do not say it.
pub(super) type Accepted = Result<(), Option<String>>;

/// Accepts a value, with its name if it is one of an object: a closure.
///
/// The vtable of a `dyn FnMut` would hold the code of the closure twice.
pub(super) trait Accept {
    /// Accepts the value, or says why not.
    fn accept(&mut self, name: &str, value: Scalar<'_>) -> Accepted;
}

impl<F: FnMut(&str, Scalar<'_>) -> Accepted> Accept for F {
    fn accept(&mut self, name: &str, value: Scalar<'_>) -> Accepted {
        self(name, value)
    }
}

/// Reads a value of any type, if it is what is allowed.
pub(super) struct ValueVisitor<'a> {
    /// What may be there, in words.
    allowed: &'a dyn fmt::Display,
    shape: Shape<'a>,
    name: &'a str,
    accept: &'a mut dyn Accept,
}

enum Shape<'a> {
    Scalar,
    List(&'a List),
    /// An object, and what its values may be.
    Object(&'a dyn fmt::Display),
}

/// A list of strings.
pub(super) struct List {
    /// In words, as in "a list of 1 to 4 keys".
    pub(super) allowed: &'static str,
    /// An item, in words.
    pub(super) item: &'static str,
    /// The least and the greatest number of items.
    pub(super) length: (usize, usize),
    /// A word that may stand instead of a list.
    pub(super) or: Option<&'static str>,
}

impl List {
    /// Reads a list, item by item; nothing is accepted of a word that stands instead of one.
    pub(super) fn read<'de, D: Deserializer<'de>>(
        &self,
        from: D,
        mut accept: impl FnMut(&str) -> Accepted,
    ) -> Result<(), D::Error> {
        let place = ValueVisitor {
            allowed: &self.allowed,
            shape: Shape::List(self),
            name: "",
            accept: &mut |_: &str, item: Scalar<'_>| match item {
                Scalar::Text(text) => accept(text),
                _ => Err(None),
            },
        };
        place.deserialize(from)
    }
}

/// Reads an object.
pub(super) fn object<'de, D: Deserializer<'de>>(
    from: D,
    allowed: &dyn fmt::Display,
    allowed_value: &dyn fmt::Display,
    accept: &mut dyn Accept,
) -> Result<(), D::Error> {
    let place = ValueVisitor {
        allowed,
        shape: Shape::Object(allowed_value),
        name: "",
        accept,
    };
    place.deserialize(from)
}

/// Reads a value that holds no others.
pub(super) fn scalar<'de, D: Deserializer<'de>>(
    from: D,
    allowed: &dyn fmt::Display,
    accept: &mut dyn Accept,
) -> Result<(), D::Error> {
    let place = ValueVisitor {
        allowed,
        shape: Shape::Scalar,
        name: "",
        accept,
    };
    place.deserialize(from)
}

impl ValueVisitor<'_> {
    fn refuse<E: Error>(&self, found: &dyn fmt::Display, why: Option<String>) -> E {
        let mut text = format!("found {found}, allowed: {}", self.allowed);
        if let Some(why) = why {
            text = text + "; " + &why;
        }
        E::custom(text)
    }

    fn scalar<E: Error>(self, scalar: Scalar<'_>) -> Result<(), E> {
        let accepted = match (&self.shape, scalar) {
            (Shape::Scalar, _) => self.accept.accept(self.name, scalar),
            (Shape::List(list), Scalar::Text(text)) if list.or == Some(text) => Ok(()),
            _ => Err(None),
        };
        accepted.map_err(|why| self.refuse(&scalar, why))
    }
}

impl<'de> DeserializeSeed<'de> for ValueVisitor<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.allowed.fmt(f)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.scalar(Scalar::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.scalar(Scalar::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.scalar(Scalar::Number(value as f64))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.scalar(Scalar::Number(value as f64))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.scalar(Scalar::Number(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.scalar(Scalar::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Shape::List(list) = self.shape else {
            return Err(self.refuse(&"a list", None));
        };
        let (least, most) = list.length;
        let mut length = 0;
        while length <= most {
            let item = ValueVisitor {
                allowed: &list.item,
                shape: Shape::Scalar,
                name: "",
                accept: &mut *self.accept,
            };
            if items.next_element_seed(item)?.is_none() {
                break;
            }
            length += 1;
        }
        match length {
            _ if length < least => Err(self.refuse(&"an empty list", None)),
            _ if length > most => Err(self.refuse(&"a longer list", None)),
            _ => Ok(()),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        let Shape::Object(allowed) = self.shape else {
            return Err(self.refuse(&"an object", None));
        };
        while let Some(name) = values.next_key::<String>()? {
            values.next_value_seed(ValueVisitor {
                allowed,
                shape: Shape::Scalar,
                name: &name,
                accept: &mut *self.accept,
            })?;
        }
        Ok(())
    }
}

/// Reads a struct that derives [`Deserialize`], from an object only: serde would accept a
/// list of the values of all fields, too.
pub(super) struct Object<T>(pub(super) PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object such as {\"mode\": \"observe\"}")
    }

    fn visit_map<A: MapAccess<'de>>(self, values: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(Values(values)))
    }

    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Err(mismatch(&self, &Scalar::Null))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<T, E> {
        Err(mismatch(&self, &Scalar::Bool(value)))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<T, E> {
        self.visit_f64(value as f64)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<T, E> {
        self.visit_f64(value as f64)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<T, E> {
        Err(mismatch(&self, &Scalar::Number(value)))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<T, E> {
        Err(mismatch(&self, &Scalar::Text(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<T, A::Error> {
        Err(mismatch(&self, &"a list"))
    }
}

/// The values of an object, each read by the visitor of its type, which is a
/// [`ValueVisitor`] for all types: the module has the code that reads a value once, and not
/// once for each key (3 KB).
struct Values<A>(A);

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Values<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        key: K,
    ) -> Result<Option<K::Value>, A::Error> {
        self.0.next_key_seed(key)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, value: V) -> Result<V::Value, A::Error> {
        value.deserialize(Values(&mut self.0))
    }
}

impl<'de, A: MapAccess<'de>> Deserializer<'de> for Values<&mut A> {
    type Error = A::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, A::Error> {
        self.0.next_value_seed(ByVisitor(visitor))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        option unit unit_struct newtype_struct seq tuple tuple_struct map struct enum
        identifier ignored_any
    }
}

/// A value, by its visitor.
struct ByVisitor<V>(V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for ByVisitor<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<V::Value, D::Error> {
        from.deserialize_any(self.0)
    }
}

fn mismatch<E: Error>(expected: &dyn Expected, found: &dyn fmt::Display) -> E {
    E::custom(format_args!("found {found}, allowed: {expected}"))
}

/// Reads `true` or `false`.
pub(super) fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    let mut flag = false;
    let mut accept = |_: &str, value: Scalar<'_>| match value {
        Scalar::Bool(value) => {
            flag = value;
            Ok(())
        }
        _ => Err(None),
    };
    scalar(from, &"true or false", &mut accept)?;
    Ok(flag)
}

/// Reads a number that `fits`, whole or not: what went through a protobuf `Struct` on
/// its way is a double, and may be written as `4.096e3`.
pub(super) fn number<'de, D: Deserializer<'de>>(
    from: D,
    allowed: &dyn fmt::Display,
    fits: fn(f64) -> bool,
) -> Result<f64, D::Error> {
    let mut number = 0.0;
    let mut accept = |_: &str, value: Scalar<'_>| match value {
        Scalar::Number(value) if fits(value) => {
            number = value;
            Ok(())
        }
        _ => Err(None),
    };
    scalar(from, allowed, &mut accept)?;
    Ok(number)
}
