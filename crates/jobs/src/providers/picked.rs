//! Reads JSON and keeps only what is asked for of it: a page of expanded objects is ten times as large as what is read of
//! it.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Says what is kept of a value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Picked {
    Whole,
    /// Of an object these fields are kept; a list keeps as much of each of its elements. What is neither is kept whole.
    Fields(&'static [(&'static str, Picked)]),
}

impl Picked {
    /// Reads a whole text.
    pub(super) fn read(self, body: &[u8]) -> serde_json::Result<Value> {
        let mut deserializer = serde_json::Deserializer::from_slice(body);
        let value = self.deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(value)
    }
}

impl<'de> DeserializeSeed<'de> for Picked {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            Self::Whole => Value::deserialize(deserializer),
            Self::Fields(fields) => deserializer.deserialize_any(Fields(fields)),
        }
    }
}

struct Fields(&'static [(&'static str, Picked)]);

impl<'de> Visitor<'de> for Fields {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(field) = object.next_key_seed(Name(self.0))? {
            match field {
                Some((name, picked)) => {
                    // Of a field that is there twice the last one counts, as in a `Value`.
                    kept.insert(name.to_owned(), object.next_value_seed(picked)?);
                }
                None => {
                    object.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut kept = Vec::new();
        while let Some(element) = list.next_element_seed(Picked::Fields(self.0))? {
            kept.push(element);
        }
        Ok(Value::Array(kept))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }
}

/// Reads a field's name: which of these it is, without keeping the others.
struct Name(&'static [(&'static str, Picked)]);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<(&'static str, Picked)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<(&'static str, Picked)>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name of a field")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|(known, _)| *known == name).copied())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::damage::damaged;

    const PICKED: Picked =
        Picked::Fields(&[("id", Picked::Whole), ("source", Picked::Fields(&[("status", Picked::Whole)]))]);

    fn read(text: &str) -> serde_json::Result<Value> {
        PICKED.read(text.as_bytes())
    }

    /// Takes away from a whole value what is not kept of it.
    fn pruned(value: Value, picked: Picked) -> Value {
        match (value, picked) {
            (Value::Object(object), Picked::Fields(fields)) => {
                let kept = object.into_iter().filter_map(|(name, value)| {
                    let (_, picked) = fields.iter().find(|(known, _)| *known == name)?;
                    Some((name, pruned(value, *picked)))
                });
                Value::Object(kept.collect())
            }
            (Value::Array(list), picked) => list.into_iter().map(|one| pruned(one, picked)).collect(),
            (other, _) => other,
        }
    }

    #[test]
    fn the_last_of_two_fields_counts() {
        assert_eq!(read(r#"{"id":1,"x":[{}],"id":2}"#).unwrap(), json!({"id": 2}));
        assert_eq!(read(r#"{"\u0069d":"\u00e9"}"#).unwrap(), json!({"id": "é"}));
        assert_eq!(read(r#"{"source":"ch_1"}"#).unwrap(), json!({"source": "ch_1"}));
        for broken in [r#"{"id":1"#, r#"{"x":}"#, r#"{"id":1}}"#, r"{1:2}"] {
            assert!(read(broken).is_err(), "{broken}");
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_is_what_the_whole_value_has(value in damaged(json!({
            "id": "txn_1", "amount": 12.5, "more": {"id": [1, null, {"status": true}]},
            "source": {"id": "ch_1", "status": "succeeded", "outcome": {"status": -7}},
        }))) {
            let text = value.to_string();
            let whole: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read(&text).unwrap(), pruned(whole, PICKED));
        }
    }
}
