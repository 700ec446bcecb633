//! `GET /v1/balance_transactions`: its parameters and its pages.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{errors::Refusal, ledger::BalanceTransaction, state::Account};

/// Returns the parameters of a list, decoded.
pub(super) fn pairs(query: Option<&str>) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes())
}

/// Holds what a request asks for.
#[derive(Debug, Default)]
pub(super) struct Params {
    from: Option<i64>,
    to: Option<i64>,
    limit: Option<usize>,
    starting_after: Option<String>,
    kind: Option<String>,
    currency: Option<String>,
    source: Option<String>,
    expand: bool,
}

impl Params {
    pub(super) fn parse(query: Option<&str>) -> Result<Self, Refusal> {
        let mut params = Self::default();
        for (name, value) in pairs(query) {
            let integer =
                || value.parse::<i64>().map_err(|_| Refusal::bad_integer(bare(&name), value.as_ref()));
            match name.as_ref() {
                "created" => (params.from, params.to) = (Some(integer()?), Some(integer()? + 1)),
                "created[gte]" => params.from = Some(integer()?),
                "created[gt]" => params.from = Some(integer()? + 1),
                "created[lt]" => params.to = Some(integer()?),
                "created[lte]" => params.to = Some(integer()? + 1),
                "limit" => params.limit = Some(limit(integer()?)?),
                "starting_after" => params.starting_after = Some(value.into_owned()),
                "type" => params.kind = Some(value.into_owned()),
                "currency" => params.currency = Some(value.to_lowercase()),
                "source" => params.source = Some(value.into_owned()),
                "expand[]" | "expand[0]" if value == "data.source" => params.expand = true,
                "expand[]" | "expand[0]" => {
                    let message = format!("This property cannot be expanded ({value}).");
                    return Err(Refusal::bad_value("expand", &message));
                }
                "ending_before" | "payout" => return Err(Refusal::not_here(&name)),
                _ => return Err(Refusal::unknown_parameter(&name)),
            }
        }
        Ok(params)
    }

    fn wants(&self, row: &BalanceTransaction) -> bool {
        self.kind.as_ref().is_none_or(|kind| *kind == row.kind)
            && self.currency.as_ref().is_none_or(|currency| *currency == row.currency)
            && (self.source.is_none() || self.source == row.source)
    }
}

fn bare(name: &str) -> &str {
    name.split('[').next().unwrap_or(name)
}

fn limit(value: i64) -> Result<usize, Refusal> {
    let bound = match value {
        ..1 => "greater than or equal to 1",
        101.. => "less than or equal to 100",
        _ => return Ok(usize::try_from(value).expect("1 to 100")),
    };
    let message = format!("This value must be {bound} (it currently is '{value}').");
    Err(Refusal::bad_value("limit", &message))
}

/// Returns one page of an account's ledger, newest first.
pub(super) fn page(account: &Account, params: &Params) -> Result<Value, Refusal> {
    let limit = params.limit.unwrap_or(10);
    let after = params.starting_after.as_deref();
    let rows = account
        .listed_between(params.from, params.to, after)
        .ok_or_else(|| Refusal::no_such_transaction("starting_after", after.unwrap_or_default()))?;
    let mut page: Vec<_> = rows.filter(|row| params.wants(row)).take(limit + 1).collect();
    let has_more = page.len() > limit;
    page.truncate(limit);
    let data: Vec<Value> = page.into_iter().map(|row| shown(account, row, params.expand)).collect();
    Ok(json!({
        "object": "list",
        "url": "/v1/balance_transactions",
        "has_more": has_more,
        "data": data,
    }))
}

/// Returns one row, asked for by its id ("Retrieve a balance transaction").
pub(super) fn single(account: &Account, id: &str, query: Option<&str>) -> Result<Value, Refusal> {
    let mut expand = false;
    for (name, value) in pairs(query) {
        match (name.as_ref(), value.as_ref()) {
            ("expand[]" | "expand[0]", "source") => expand = true,
            ("expand[]" | "expand[0]", _) => {
                let message = format!("This property cannot be expanded ({value}).");
                return Err(Refusal::bad_value("expand", &message));
            }
            _ => return Err(Refusal::unknown_parameter(&name)),
        }
    }
    let row = account.listed().find(|row| row.id == id);
    row.map(|row| shown(account, row, expand)).ok_or_else(|| Refusal::no_such_transaction("id", id))
}

fn shown(account: &Account, row: &BalanceTransaction, expand: bool) -> Value {
    let mut value = serde_json::to_value(row).expect("plain data");
    if let Some(id) = row.source.as_ref().filter(|_| expand)
        && let Some(source) = account.sources.get(id)
    {
        value["source"] = source.json(id, &row.id);
    }
    for (field, odd) in row.oddities.as_object().into_iter().flatten() {
        if odd.is_null() {
            value.as_object_mut().expect("a row").remove(field);
        } else {
            value[field] = odd.clone();
        }
    }
    value
}
