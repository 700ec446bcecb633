//! What a query costs: objects one point, scalars none, a connection two and its nodes.
//!
//! Shopify publishes these rules and not their exceptions; some real queries are cheaper.

use async_graphql_parser::types::{Field, SelectionSet};
use serde_json::Value;

use super::{execute::Document, schema};

/// What one object of this type adds.
pub(super) fn of_object(ty: &str) -> u64 {
    if ty.ends_with("Connection") { 2 } else { u64::from(!(ty.ends_with("Edge") || ty == "PageInfo")) }
}

/// What the query may cost at most: its pages full, none of its objects null.
pub(super) fn requested(document: &Document<'_>, set: &SelectionSet) -> u64 {
    of_fields(document, schema::QUERY, &[set], 0)
}

fn of_fields(document: &Document<'_>, ty: &str, sets: &[&SelectionSet], page: u64) -> u64 {
    let fields = document.fields(ty, sets);
    fields.iter().map(|(_, fields)| of_field(document, ty, fields, page)).sum()
}

fn of_field(document: &Document<'_>, ty: &str, fields: &[&Field], page: u64) -> u64 {
    let Some(definition) = schema::field(ty, &fields[0].name.node) else { return 0 };
    if !schema::is_composite(&definition.ty) {
        return 0;
    }
    let inner = schema::name(&definition.ty);
    let arguments = document.arguments(definition, fields[0]);
    let asked = arguments.get("first").and_then(Value::as_u64);
    let times = match arguments.get("ids").and_then(Value::as_array) {
        Some(ids) => ids.len() as u64,
        // Inside a connection, its lists are as long as its page.
        None if schema::is_list(&definition.ty) => asked.unwrap_or(page.max(1)),
        None => 1,
    };
    let sets: Vec<_> = fields.iter().map(|field| &field.selection_set.node).collect();
    let page = if inner.ends_with("Connection") { asked.unwrap_or(0) } else { 0 };
    let below =
        if inner == "Node" { of_nodes(document, &sets) } else { of_fields(document, inner, &sets, page) };
    times.saturating_mul(of_object(inner) + below)
}

/// An interface costs what the dearest of its types does.
fn of_nodes(document: &Document<'_>, sets: &[&SelectionSet]) -> u64 {
    let types = ["Order", "OrderTransaction", "TenderTransaction", "ShopifyPaymentsDispute"];
    types.into_iter().map(|ty| of_fields(document, ty, sets, 0)).max().unwrap_or_default()
}
