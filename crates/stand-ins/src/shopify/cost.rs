//! What a query costs: objects one point, scalars none, a connection two and its nodes.
//!
//! Shopify publishes these rules and not their exceptions; some real queries are cheaper.

use apollo_compiler::{
    ExecutableDocument,
    ast::{DirectiveList, Value as Literal},
    executable::{Field, Operation, Selection, SelectionSet},
    response::JsonMap,
};
use serde_json::{Value, json};

use super::schema;

/// Returns what one object of this type adds.
pub(super) fn of_object(ty: &str) -> u64 {
    if ty.ends_with("Connection") { 2 } else { u64::from(!(ty.ends_with("Edge") || ty == "PageInfo")) }
}

/// Returns what the query may cost at most: its pages full, none of its objects null.
pub(super) fn requested(document: &ExecutableDocument, operation: &Operation, variables: &JsonMap) -> u64 {
    Query { document, variables }.of_fields(schema::QUERY, &[&operation.selection_set], 0)
}

struct Query<'a> {
    document: &'a ExecutableDocument,
    variables: &'a JsonMap,
}

impl<'a> Query<'a> {
    fn of_fields(&self, ty: &str, sets: &[&'a SelectionSet], page: u64) -> u64 {
        let mut found = Vec::new();
        for set in sets {
            self.collect(ty, set, &mut found);
        }
        found.iter().map(|fields| self.of_field(fields, page)).sum()
    }

    fn of_field(&self, fields: &[&'a Field], page: u64) -> u64 {
        let field = fields[0];
        if field.selection_set.is_empty() {
            return 0;
        }
        let inner = field.selection_set.ty.as_str();
        let argument = |name| Some(self.value(field.specified_argument_by_name(name)?));
        let asked = argument("first").and_then(|first| first.as_u64());
        let times = match argument("ids") {
            Some(Value::Array(ids)) => ids.len() as u64,
            // Inside a connection, its lists are as long as its page.
            _ if field.ty().is_list() => asked.unwrap_or(page.max(1)),
            _ => 1,
        };
        let sets: Vec<_> = fields.iter().map(|field| &field.selection_set).collect();
        let page = if inner.ends_with("Connection") { asked.unwrap_or(0) } else { 0 };
        let below = if inner == "Node" { self.of_nodes(&sets) } else { self.of_fields(inner, &sets, page) };
        times.saturating_mul(of_object(inner) + below)
    }

    /// Returns what nodes cost: an interface costs what the dearest of its types does.
    fn of_nodes(&self, sets: &[&'a SelectionSet]) -> u64 {
        let types = ["Order", "OrderTransaction", "TenderTransaction", "ShopifyPaymentsDispute"];
        types.into_iter().map(|ty| self.of_fields(ty, sets, 0)).max().unwrap_or_default()
    }

    /// Adds the fields that `set` selects of an object of type `ty`; those with one response key are together.
    fn collect(&self, ty: &str, set: &'a SelectionSet, found: &mut Vec<Vec<&'a Field>>) {
        let applies = |on: &str| on == ty || schema::SCHEMA.is_subtype(on, ty);
        for selection in set.selections.iter().filter(|selection| self.included(selection.directives())) {
            match selection {
                Selection::Field(field) => {
                    let same = |fields: &&mut Vec<&Field>| fields[0].response_key() == field.response_key();
                    match found.iter_mut().find(same) {
                        Some(fields) => fields.push(field),
                        None => found.push(vec![field]),
                    }
                }
                Selection::InlineFragment(fragment) => {
                    if fragment.type_condition.as_ref().is_none_or(|on| applies(on)) {
                        self.collect(ty, &fragment.selection_set, found);
                    }
                }
                Selection::FragmentSpread(spread) => {
                    let fragment = self.document.fragments.get(&spread.fragment_name);
                    if let Some(fragment) = fragment.filter(|fragment| applies(fragment.type_condition())) {
                        self.collect(ty, &fragment.selection_set, found);
                    }
                }
            }
        }
    }

    fn included(&self, directives: &DirectiveList) -> bool {
        let says = |name: &str| {
            let condition = directives.get(name)?.specified_argument_by_name("if")?;
            self.value(condition).as_bool()
        };
        says("skip") != Some(true) && says("include") != Some(false)
    }

    /// Returns what a cost depends on: numbers, conditions and the lengths of lists.
    fn value(&self, literal: &Literal) -> Value {
        match literal {
            Literal::Variable(name) => {
                self.variables.get(name.as_str()).map_or(Value::Null, |value| json!(value))
            }
            Literal::Int(number) => number.try_to_i32().map_or(Value::Null, Value::from),
            Literal::Boolean(value) => Value::Bool(*value),
            Literal::List(items) => items.iter().map(|item| self.value(item)).collect(),
            _ => Value::Null,
        }
    }
}
