//! Answers as nobody should send them, for property tests: good ones with parts missing, null, of another type, huge,
//! or there twice.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

/// Says what happens to one part of an answer.
#[derive(Clone, Debug)]
enum Damage {
    Missing,
    Replaced(Value),
    Twice,
}

/// Generates whatever JSON can hold.
pub(crate) fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        prop::sample::select(vec![
            json!(i64::MIN),
            json!(i64::MAX),
            json!(u64::MAX),
            json!(1e308),
            json!(-1e308),
            json!(5e-324),
            json!(-0.0),
            json!(""),
            json!("brand_new"),
            json!("99999999999999999999999999999.99"),
            json!("1e400"),
            json!("NaN"),
            json!("\u{0}\u{202e}'\"<script>"),
            json!("a".repeat(5_000)),
            json!([]),
            json!({}),
        ]),
        "\\PC{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{1,8}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

/// Generates a good answer with up to three of its parts damaged.
pub(crate) fn damaged(good: Value) -> impl Strategy<Value = Value> {
    let damage = prop_oneof![
        2 => Just(Damage::Missing),
        1 => Just(Damage::Twice),
        3 => anything().prop_map(Damage::Replaced),
    ];
    prop::collection::vec((any::<Index>(), damage), 0..4).prop_map(move |damages| {
        let mut value = good.clone();
        for (place, damage) in damages {
            let mut steps = place.index(parts(&value));
            harm(&mut value, &mut steps, &damage);
        }
        value
    })
}

/// Returns how many parts there are, the whole being one.
fn parts(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(parts).sum(),
        Value::Object(fields) => fields.values().map(parts).sum(),
        _ => 0,
    }
}

/// Damages the part that is `steps` ahead; says whether it was the value itself.
fn harm(value: &mut Value, steps: &mut usize, damage: &Damage) -> bool {
    if *steps == 0 {
        if let Damage::Replaced(by) = damage {
            *value = by.clone();
        }
        return true;
    }
    match value {
        Value::Array(items) => {
            for index in 0..items.len() {
                *steps -= 1;
                let here = *steps == 0;
                if harm(&mut items[index], steps, damage) {
                    match damage {
                        Damage::Missing if here => drop(items.remove(index)),
                        Damage::Twice if here => items.push(items[index].clone()),
                        _ => {}
                    }
                    return true;
                }
            }
        }
        Value::Object(fields) => {
            let names: Vec<String> = fields.keys().cloned().collect();
            for name in names {
                *steps -= 1;
                let here = *steps == 0;
                if harm(&mut fields[&name], steps, damage) {
                    if here && matches!(damage, Damage::Missing) {
                        fields.remove(&name);
                    }
                    return true;
                }
            }
        }
        _ => {}
    }
    false
}

#[test]
fn every_part_can_be_damaged() {
    let good = json!({"a": [1, {"b": 2}], "c": 3});
    assert_eq!(parts(&good), 6);
    let missing: Vec<Value> = (1..6)
        .map(|place| {
            let (mut value, mut steps) = (good.clone(), place);
            assert!(harm(&mut value, &mut steps, &Damage::Missing));
            value
        })
        .collect();
    assert_eq!(
        missing,
        [
            json!({"c": 3}),
            json!({"a": [{"b": 2}], "c": 3}),
            json!({"a": [1], "c": 3}),
            json!({"a": [1, {}], "c": 3}),
            json!({"a": [1, {"b": 2}]}),
        ]
    );
    let (mut value, mut steps) = (good.clone(), 2);
    harm(&mut value, &mut steps, &Damage::Twice);
    assert_eq!(value, json!({"a": [1, {"b": 2}, 1], "c": 3}));
}
