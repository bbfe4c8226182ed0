//! A JSON value, as far as the configuration needs one: numbers are whole, or
//! between 0 and 1. To write others would bring the module 30 KB of code.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// A JSON value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(u64),
    /// Between 0 and 1, in millionths.
    Fraction(u32),
    /// Any other number.
    OtherNumber,
    String(String),
    Array(Vec<Value>),
    /// In order, repeated keys included.
    Object(Vec<(String, Value)>),
}

impl Value {
    pub(crate) fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub(crate) fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Number(value) => Some(*value),
            _ => None,
        }
    }

    pub(crate) fn as_millionths(&self) -> Option<u32> {
        match self {
            Self::Fraction(value) => Some(*value),
            _ => None,
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(value) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(value) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn as_object(&self) -> Option<&[(String, Value)]> {
        match self {
            Self::Object(value) => Some(value),
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    /// As JSON, but for numbers that are not whole, and without escapes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let comma = |n: usize| if n == 0 { "" } else { ", " };
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(true) => f.write_str("true"),
            Self::Bool(false) => f.write_str("false"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Fraction(value) => {
                let digits = format!("{value:06}");
                write!(f, "0.{}", digits.trim_end_matches('0'))
            }
            Self::OtherNumber => f.write_str("a negative, fractional or very large number"),
            Self::String(value) => write!(f, "\"{value}\""),
            Self::Array(values) => {
                f.write_str("[")?;
                for (n, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", comma(n))?;
                }
                f.write_str("]")
            }
            Self::Object(entries) => {
                f.write_str("{")?;
                for (n, (name, value)) in entries.iter().enumerate() {
                    write!(f, "{}\"{name}\": {value}", comma(n))?;
                }
                f.write_str("}")
            }
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::Number(value))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
                Ok(Value::OtherNumber)
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(match value {
                    0.000_001..1.0 => Value::Fraction((value * 1e6 + 0.5) as u32),
                    _ => Value::OtherNumber,
                })
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::String(value.to_string()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = seq.next_element()? {
                    values.push(value);
                }
                Ok(Value::Array(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(Value::String(name)) = map.next_key()? {
                    entries.push((name, map.next_value()?));
                }
                Ok(Value::Object(entries))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_and_shown() {
        for (text, shown) in [
            ("null", "null"),
            ("[true,false]", "[true, false]"),
            ("18446744073709551615", "18446744073709551615"),
            (
                "{\"a\":{\"b\":[]},\"a\":\"c\"}",
                "{\"a\": {\"b\": []}, \"a\": \"c\"}",
            ),
            ("[-1]", "[a negative, fractional or very large number]"),
            ("0.995", "0.995"),
            ("1.5", "a negative, fractional or very large number"),
            (
                "18446744073709551616",
                "a negative, fractional or very large number",
            ),
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(value.to_string(), shown);
        }
    }
}
