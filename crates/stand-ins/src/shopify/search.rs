//! Shopify's search syntax, as far as lists of money use it: `processed_at:>='2026-11-01T00:00:00Z' test:false`.
//!
//! The trap is kept: what cannot be understood is dropped with a warning, and the rows come unfiltered. A
//! timestamp without quotes falls apart at its colons, so that `processed_at:>=2026-11-01T10:30:00Z` loses
//! its own term and earns a warning about a field named `30`.

use std::cmp::Ordering;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use serde_json::{Value, json};

use super::errors::Error;

/// Says what a field holds.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Id,
    Time,
    Bool,
    Text,
}

/// Holds the value of a row's field, or what a term compares it with.
#[derive(Clone, Debug, PartialEq, PartialOrd)]
pub(super) enum Cell {
    Id(u64),
    Time(DateTime<Utc>),
    Bool(bool),
    Text(String),
}

#[derive(Debug)]
struct Term {
    field: String,
    comparator: &'static str,
    value: Cell,
}

impl Term {
    fn holds(&self, cell: &Cell) -> bool {
        let Some(order) = cell.partial_cmp(&self.value) else { return false };
        match self.comparator {
            "<" => order == Ordering::Less,
            "<=" => order != Ordering::Greater,
            ">" => order == Ordering::Greater,
            ">=" => order != Ordering::Less,
            _ => order == Ordering::Equal,
        }
    }
}

/// Represents a parsed search.
#[derive(Debug, Default)]
pub(super) struct Search {
    terms: Vec<Term>,
    parsed: Vec<Value>,
    warnings: Vec<Value>,
}

impl Search {
    /// Parses `query` for a list that can be filtered by `fields`.
    pub(super) fn parse(query: &str, fields: &[(&str, Kind)]) -> Result<Self, Error> {
        let mut search = Self::default();
        let mut rest = query.trim_start();
        while !rest.is_empty() {
            let word = &rest[..rest.find(|c: char| c == ':' || c.is_whitespace()).unwrap_or(rest.len())];
            rest = &rest[word.len()..];
            if matches!(word, "OR" | "NOT") || word.starts_with(['(', '-']) {
                return Err(Error::not_here(&format!("`{word}` in a search")));
            }
            if let Some(value) = rest.strip_prefix(':') {
                rest = search.term(word, value, fields);
            } else if word != "AND" {
                search.parsed.push(json!({"field": "default", "match_all": word}));
                search.warn("default", "Invalid search field for this query.", "invalid_field");
            }
            rest = rest.trim_start();
        }
        Ok(search)
    }

    /// Takes one value off `rest`, which starts behind the colon, and returns what is left.
    fn term<'a>(&mut self, field: &str, rest: &'a str, fields: &[(&str, Kind)]) -> &'a str {
        let comparator = ["<=", ">=", "<", ">"].into_iter().find(|c| rest.starts_with(c)).unwrap_or("");
        let rest = &rest[comparator.len()..];
        let (value, rest, broken) = if let Some(quoted) = rest.strip_prefix(['\'', '"']) {
            match quoted.split_once(&rest[..1]) {
                Some((value, rest)) => (value, rest, false),
                None => (quoted, "", true),
            }
        } else {
            let end = rest.find(|c: char| c == ':' || c.is_whitespace()).unwrap_or(rest.len());
            let (value, rest) = rest.split_at(end);
            rest.strip_prefix(':').map_or((value, rest, false), |rest| (value, rest, true))
        };
        self.parsed.push(match comparator {
            "" => json!({"field": field, "match_all": value}),
            "<" => json!({"field": field, "range": {"lt": value}}),
            "<=" => json!({"field": field, "range": {"lte": value}}),
            ">" => json!({"field": field, "range": {"gt": value}}),
            _ => json!({"field": field, "range": {"gte": value}}),
        });
        let Some((_, kind)) = fields.iter().find(|(name, _)| *name == field) else {
            self.warn(field, "Invalid search field for this query.", "invalid_field");
            return rest;
        };
        match cell(*kind, value) {
            _ if broken => {}
            Some(value) => self.terms.push(Term { field: field.into(), comparator, value }),
            None => {
                let message = format!("Input `{value}` is not an accepted value.");
                self.warn(field, &message, "invalid_value");
            }
        }
        rest
    }

    fn warn(&mut self, field: &str, message: &str, code: &str) {
        self.warnings.push(json!({"field": field, "message": message, "code": code}));
    }

    /// Tells whether a row is found; `cell` gives the value of one of its fields.
    pub(super) fn finds(&self, cell: impl Fn(&str) -> Option<Cell>) -> bool {
        self.terms.iter().all(|term| cell(&term.field).is_none_or(|value| term.holds(&value)))
    }

    /// Returns what `extensions.search` says, when there is something to say.
    pub(super) fn extension(&self, path: &[Value], query: &str) -> Option<Value> {
        if self.warnings.is_empty() {
            return None;
        }
        let parsed = match self.parsed.as_slice() {
            [one] => one.clone(),
            several => json!({"and": several}),
        };
        Some(json!({"path": path, "query": query, "parsed": parsed, "warnings": self.warnings}))
    }
}

fn cell(kind: Kind, value: &str) -> Option<Cell> {
    match kind {
        Kind::Id => value.parse().ok().map(Cell::Id),
        Kind::Bool => value.parse().ok().map(Cell::Bool),
        Kind::Text => Some(Cell::Text(value.to_uppercase())),
        Kind::Time => {
            let day = || value.parse::<NaiveDate>().ok().map(|day| day.and_time(NaiveTime::MIN).and_utc());
            let instant = DateTime::parse_from_rfc3339(value).map(|at| at.to_utc()).ok();
            instant.or_else(day).map(Cell::Time)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &[(&str, Kind)] = &[("processed_at", Kind::Time), ("test", Kind::Bool), ("id", Kind::Id)];

    /// Checks which of three rows (31 October, 1 November, 2 November; the last a test) are found,
    /// and the fields warned about.
    fn check(query: &str, found: [bool; 3], warned: &[&str]) {
        let search = Search::parse(query, FIELDS).expect("a search");
        let rows = [
            ("2026-10-31T23:30:00Z", false, 1),
            ("2026-11-01T00:00:00Z", false, 2),
            ("2026-11-02T10:00:00Z", true, 3),
        ];
        let got = rows.map(|(at, test, id)| {
            search.finds(|field| match field {
                "processed_at" => cell(Kind::Time, at),
                "test" => Some(Cell::Bool(test)),
                _ => Some(Cell::Id(id)),
            })
        });
        assert_eq!(got, found, "{query}");
        let fields: Vec<_> =
            search.warnings.iter().map(|w| w["field"].as_str().unwrap_or_default()).collect();
        assert_eq!(fields, warned, "{query}");
    }

    #[test]
    fn filters_or_warns() {
        check("", [true, true, true], &[]);
        check("processed_at:>='2026-11-01T00:00:00Z'", [false, true, true], &[]);
        check("processed_at:>'2026-11-01T00:00:00Z'", [false, false, true], &[]);
        check("processed_at:<\"2026-11-01T00:00:00Z\"", [true, false, false], &[]);
        check("processed_at:>='2026-11-01T01:00:00+01:00' test:false", [false, true, false], &[]);
        check(
            "processed_at:>='2026-11-01T00:00:00Z' AND processed_at:<'2026-11-02T00:00:00Z'",
            [false, true, false],
            &[],
        );
        check("processed_at:>=2026-11-01", [false, true, true], &[]);
        check("test:true", [false, false, true], &[]);
        check("id:2", [false, true, false], &[]);
        check("id:>=2 id:<=2", [false, true, false], &[]);
        // Unquoted: the term is gone, and so are the days before.
        check("processed_at:>=2026-11-01T00:30:00Z", [true, true, true], &["30"]);
        check("processed_at:>=2026-11-01T00:30:00Z test:false", [true, true, false], &["30"]);
        check("created_at:>='2026-11-01T00:00:00Z'", [true, true, true], &["created_at"]);
        check("processed_at:>='yesterday'", [true, true, true], &["processed_at"]);
        check("camille", [true, true, true], &["default"]);
    }

    #[test]
    fn refuses_what_it_cannot_do() {
        for query in ["test:true OR test:false", "NOT test:true", "-test:true", "(test:true)"] {
            assert!(Search::parse(query, FIELDS).is_err(), "{query}");
        }
    }
}
