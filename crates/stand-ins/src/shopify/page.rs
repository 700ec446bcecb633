//! Connections: pages of at most 250, and cursors that nobody is meant to read.

use std::{collections::BTreeMap, ops::Bound};

use serde_json::{Map, Value, json};

use super::{errors::Error, state::Misbehaviour};

/// Holds the arguments of a connection.
pub(super) struct Request {
    first: usize,
    after: Option<Cursor>,
    reverse: bool,
}

/// Says where a page starts.
#[derive(Clone, Copy)]
enum Cursor {
    After(u64),
    /// It is the first page once more: what [`Misbehaviour::DuplicatePage`] leads to.
    Again,
}

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        let bytes = hex::decode(text).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        match text.split_once(':')? {
            ("again", _) => Some(Self::Again),
            ("last_id", id) => id.parse().ok().map(Self::After),
            _ => None,
        }
    }
}

fn cursor(again: bool, id: u64) -> String {
    hex::encode(format!("{}:{id}", if again { "again" } else { "last_id" }))
}

impl Request {
    pub(super) fn read(arguments: &Map<String, Value>) -> Result<Self, Error> {
        let given = |name: &str| arguments.get(name).filter(|value| !value.is_null());
        if given("last").is_some() || given("before").is_some() {
            return Err(Error::not_here("paging backwards (`last`, `before`)"));
        }
        let first = given("first")
            .ok_or_else(|| Error::new("you must provide one of first or last", "BAD_REQUEST"))?
            .as_i64()
            .unwrap_or_default();
        let first = match first {
            ..0 => Err(Error::new("first cannot be less than 0", "BAD_REQUEST")),
            251.. => Err(Error::new("first cannot exceed 250", "BAD_REQUEST")),
            _ => Ok(usize::try_from(first).expect("0 to 250")),
        }?;
        let after =
            match given("after").and_then(Value::as_str) {
                None => None,
                Some(text) => Some(Cursor::parse(text).ok_or_else(|| {
                    Error::new("Invalid cursor for current pagination sort.", "BAD_REQUEST")
                })?),
            };
        let reverse = given("reverse").and_then(Value::as_bool).unwrap_or_default();
        Ok(Self { first, after, reverse })
    }

    /// Returns the page out of those of `rows` that `keep` keeps.
    pub(super) fn page<T>(
        &self,
        connection: &str,
        rows: &BTreeMap<u64, T>,
        keep: impl Fn(u64, &T) -> bool,
        misbehaviour: Option<Misbehaviour>,
        node: impl Fn(u64, &T) -> Value,
    ) -> Value {
        let after = match (misbehaviour, self.after) {
            (Some(Misbehaviour::LoopingCursor), _) | (_, None | Some(Cursor::Again)) => None,
            (_, Some(Cursor::After(id))) => Some(id),
        };
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest: Box<dyn Iterator<Item = (&u64, &T)>> = if self.reverse {
            Box::new(rows.range((Bound::Unbounded, start)).rev())
        } else {
            Box::new(rows.range((start, Bound::Unbounded)))
        };
        let mut rest = rest.filter(|(id, row)| keep(**id, row));
        let page: Vec<_> = rest.by_ref().take(self.first).collect();
        let mut more = rest.next().is_some();
        let again = misbehaviour == Some(Misbehaviour::DuplicatePage) && self.after.is_none();
        let mut end = page.last().map(|(id, _)| cursor(again, **id));
        match misbehaviour {
            Some(Misbehaviour::LoopingCursor) => more = true,
            Some(Misbehaviour::NoCursor) => (more, end) = (true, None),
            _ => {}
        }
        let nodes: Vec<Value> = page.iter().map(|(id, row)| node(**id, row)).collect();
        let edges: Vec<Value> = page
            .iter()
            .zip(&nodes)
            .map(|((id, _), node)| json!({"__typename": edge(connection), "cursor": cursor(false, **id), "node": node}))
            .collect();
        json!({
            "__typename": connection,
            "edges": edges,
            "nodes": nodes,
            "pageInfo": {
                "__typename": "PageInfo",
                "hasNextPage": more,
                "hasPreviousPage": after.is_some(),
                "startCursor": page.first().map(|(id, _)| cursor(false, **id)),
                "endCursor": end,
            },
        })
    }
}

fn edge(connection: &str) -> String {
    connection.replace("Connection", "Edge")
}
