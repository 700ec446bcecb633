//! Writes movements as the database takes them: one list for each field.
//!
//! The names of fields then stand there once, and not once for each of hundreds of movements: half the text for us to
//! write, for PostgREST to pass on and for the database to read.

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::json;

use crate::providers::Movement;

/// Writes the movements; a field that none of them has is left out, and so is `converted` where all of them are.
pub(super) fn serialize<S: Serializer>(movements: &[Movement], serializer: S) -> Result<S::Ok, S::Error> {
    let mut columns = serializer.serialize_map(None)?;
    let to = &mut columns;
    add(to, "external_id", movements, |movement| Some(&movement.external_id))?;
    add(to, "kind", movements, |movement| Some(movement.kind))?;
    add(to, "source_kind", movements, |movement| Some(&movement.source_kind))?;
    add(to, "state", movements, |movement| movement.state.as_ref())?;
    add(to, "method", movements, |movement| movement.method.as_ref())?;
    add(to, "occurred_at", movements, |movement| movement.occurred_at)?;
    add(to, "listed_at", movements, |movement| movement.listed_at)?;
    add(to, "amount_minor", movements, |movement| movement.amount_minor)?;
    add(to, "currency", movements, |movement| movement.currency.as_ref())?;
    add(to, "converted", movements, |movement| (!movement.converted).then_some(false))?;
    add(to, "original", movements, |movement| movement.original.as_ref())?;
    // A list in a list would be a dimension of an array. Few movements have more than two.
    add(to, "reference_1", movements, |movement| movement.references.first())?;
    add(to, "reference_2", movements, |movement| movement.references.get(1))?;
    add(to, "more_references", movements, |movement| {
        let more = movement.references.get(2..).filter(|more| !more.is_empty())?;
        Some(json!({"ids": more}))
    })?;
    columns.end()
}

fn add<'a, M: SerializeMap, T: Serialize>(
    columns: &mut M,
    name: &'static str,
    movements: &'a [Movement],
    field: impl Fn(&'a Movement) -> Option<T>,
) -> Result<(), M::Error> {
    if movements.iter().all(|movement| field(movement).is_none()) {
        return Ok(());
    }
    columns.serialize_entry(name, &Column(movements, field))
}

struct Column<'a, F>(&'a [Movement], F);

impl<'a, T: Serialize, F: Fn(&'a Movement) -> Option<T>> Serialize for Column<'a, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(&self.1))
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::money::{Currency, MinorAmount};
    use crate::providers::{MovementKind, Original};

    fn written(movements: &[Movement]) -> serde_json::Value {
        serialize(movements, serde_json::value::Serializer).unwrap()
    }

    fn movement(id: &str, references: &[&str]) -> Movement {
        let amount = MinorAmount::new(1250, Currency::EUR);
        Movement {
            references: references.iter().map(|&id| id.to_owned()).collect(),
            ..Movement::new(id, MovementKind::Payment, "charge", DateTime::UNIX_EPOCH, amount)
        }
    }

    #[test]
    fn what_no_movement_has_is_left_out() {
        assert_eq!(written(&[]), json!({}));
        assert_eq!(
            written(&[movement("txn_1", &[]), movement("txn_2", &["ch_2"])]),
            json!({
                "external_id": ["txn_1", "txn_2"],
                "kind": ["payment", "payment"],
                "source_kind": ["charge", "charge"],
                "occurred_at": ["1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"],
                "listed_at": ["1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"],
                "amount_minor": [1250, 1250],
                "currency": ["EUR", "EUR"],
                "reference_1": [null, "ch_2"],
            })
        );
    }

    #[test]
    fn nothing_of_a_movement_is_lost() {
        let odd = Movement {
            state: Some("pending".into()),
            method: Some("card".into()),
            occurred_at: None,
            listed_at: None,
            amount_minor: None,
            currency: None,
            converted: false,
            original: Some(Original { amount: Some("1".into()), ..Original::default() }),
            ..movement("txn_2", &["ch_2", "pi_2", "re_2", "tr_2"])
        };
        let columns = written(&[movement("txn_1", &["ch_1", "pi_1"]), odd]);
        for (name, expected) in [
            ("state", json!([null, "pending"])),
            ("method", json!([null, "card"])),
            ("occurred_at", json!(["1970-01-01T00:00:00Z", null])),
            ("listed_at", json!(["1970-01-01T00:00:00Z", null])),
            ("amount_minor", json!([1250, null])),
            ("currency", json!(["EUR", null])),
            ("converted", json!([null, false])),
            ("reference_1", json!(["ch_1", "ch_2"])),
            ("reference_2", json!(["pi_1", "pi_2"])),
            ("more_references", json!([null, {"ids": ["re_2", "tr_2"]}])),
        ] {
            assert_eq!(columns[name], expected, "{name}");
        }
        assert_eq!(columns["original"][1]["amount"], "1");
    }
}
