//! Reads JSON more strictly than a parser does by itself: a key that comes twice, a NUL in a text and a
//! body that nests too deeply are refused, because the first would be ignored, the second cannot be stored,
//! and the third is an attack.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Why it is no good JSON.
#[derive(Debug, PartialEq, Eq)]
pub enum Bad {
    /// It nests deeper than this.
    TooDeep(usize),
    /// Something else, with line and column.
    Other(String),
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bad::TooDeep(most) => write!(f, "it nests deeper than {most}"),
            Bad::Other(text) => f.write_str(text),
        }
    }
}

/// Up to here every whole number has a floating one of its own: 2 to the power of 53.
const MOST_EXACT: f64 = 9_007_199_254_740_992.0;

/// The value, or why it is none. `most`: how deep it may nest.
pub fn read(bytes: &[u8], most: usize) -> Result<Value, Bad> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let too_deep = Cell::new(false);
    let read = Strict { left: most, too_deep: &too_deep }.deserialize(&mut reader);
    read.and_then(|value| reader.end().map(|()| value))
        .map_err(|error| if too_deep.get() { Bad::TooDeep(most) } else { Bad::Other(error.to_string()) })
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    /// How much deeper it may go.
    left: usize,
    too_deep: &'a Cell<bool>,
}

impl Strict<'_> {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        if self.left == 0 {
            self.too_deep.set(true);
            return Err(E::custom("it nests too deeply"));
        }
        Ok(Strict { left: self.left - 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        // JSON has one kind of number: `2.0` is as whole as `2`, and JSON Schema's `integer` takes it.
        if value.fract() == 0.0 && value.abs() <= MOST_EXACT {
            #[allow(clippy::cast_possible_truncation)]
            return Ok((value as i64).into());
        }
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is out of range"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        text(value).map(Value::String)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let key = text(&key)?;
            let value = entries.next_value_seed(inner)?;
            if map.contains_key(&key) {
                return Err(de::Error::custom(format!("the key `{key}` comes twice")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

fn text<E: de::Error>(value: &str) -> Result<String, E> {
    if value.contains('\0') {
        return Err(E::custom("a text holds a NUL character"));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST_DEEP: usize = 32;

    fn read(bytes: &[u8]) -> Result<Value, String> {
        super::read(bytes, MOST_DEEP).map_err(|bad| bad.to_string())
    }

    #[test]
    fn reads_what_is_json() {
        let value = read(br#"{"a": [1, -2, 1.5, true, null, "x"], "b": {}}"#).unwrap();
        assert_eq!(value, serde_json::json!({"a": [1, -2, 1.5, true, null, "x"], "b": {}}));
        assert_eq!(read(b"[2.0, -3e2, 1e300]").unwrap(), serde_json::json!([2, -300, 1e300]));
    }

    #[test]
    fn refuses_what_would_be_ignored_or_cannot_be_stored() {
        for (body, says) in [
            (r#"{"a": 1, "a": 2}"#, "`a` comes twice"),
            (r#"{"a": "\u0000"}"#, "NUL"),
            (r#"{"a": 1} x"#, "trailing"),
            (r#"{"a": "#, "EOF"),
            ("", "EOF"),
            ("{\"a\": 1e999}", "out of range"),
        ] {
            let error = read(body.as_bytes()).unwrap_err();
            assert!(error.contains(says), "{body}: {error}");
        }
        let bomb = "[".repeat(100_000);
        assert!(read(bomb.as_bytes()).unwrap_err().contains("deeper than 32"));
        let deepest = format!("{}{}", "[".repeat(MOST_DEEP), "]".repeat(MOST_DEEP));
        assert!(read(deepest.as_bytes()).is_ok());
    }
}
