//! Runs a validated document: selections, aliases, fragments, arguments, and nulls that climb.

use std::collections::HashMap;

use async_graphql_parser::{
    Positioned,
    types::{BaseType, Directive, Field, FragmentDefinition, Selection, SelectionSet, Type},
};
use async_graphql_value::{ConstValue, Name, Value as Literal};
use serde_json::{Map, Value, json};

use super::{errors::Error, resolve, schema, state::Shop};

/// A document's fragments and its variables: what selections are read with.
pub(super) struct Document<'a> {
    pub(super) fragments: &'a HashMap<Name, Positioned<FragmentDefinition>>,
    pub(super) variables: Map<String, Value>,
}

impl<'a> Document<'a> {
    /// The fields that `sets` select of an object of type `ty`, by response key, in the order of the document.
    pub(super) fn fields(&self, ty: &str, sets: &[&'a SelectionSet]) -> Vec<(&'a str, Vec<&'a Field>)> {
        let mut found: Vec<(&str, Vec<&Field>)> = Vec::new();
        for set in sets {
            self.collect(ty, set, &mut found);
        }
        found
    }

    fn collect(&self, ty: &str, set: &'a SelectionSet, found: &mut Vec<(&'a str, Vec<&'a Field>)>) {
        for selection in &set.items {
            if !self.included(selection.node.directives()) {
                continue;
            }
            match &selection.node {
                Selection::Field(field) => {
                    let key = field.node.response_key().node.as_str();
                    match found.iter_mut().find(|(other, _)| *other == key) {
                        Some((_, fields)) => fields.push(&field.node),
                        None => found.push((key, vec![&field.node])),
                    }
                }
                Selection::InlineFragment(fragment) => {
                    let on = fragment.node.type_condition.as_ref().map(|on| on.node.on.node.as_str());
                    if on.is_none_or(|on| applies(on, ty)) {
                        self.collect(ty, &fragment.node.selection_set.node, found);
                    }
                }
                Selection::FragmentSpread(spread) => {
                    let Some(fragment) = self.fragments.get(&spread.node.fragment_name.node) else {
                        continue;
                    };
                    if applies(&fragment.node.type_condition.node.on.node, ty) {
                        self.collect(ty, &fragment.node.selection_set.node, found);
                    }
                }
            }
        }
    }

    fn included(&self, directives: &[Positioned<Directive>]) -> bool {
        directives.iter().all(|directive| {
            let condition = directive.node.get_argument("if").map(|value| self.value(&value.node));
            match (directive.node.name.node.as_str(), condition) {
                ("skip", Some(Value::Bool(skip))) => !skip,
                ("include", Some(Value::Bool(include))) => include,
                _ => true,
            }
        })
    }

    /// The arguments of a field, with its defaults; what is not given is not there.
    pub(super) fn arguments(&self, definition: &schema::Field, field: &Field) -> Map<String, Value> {
        let mut arguments = Map::new();
        for argument in &definition.arguments {
            let given = field.get_argument(&argument.name).map(|value| self.value(&value.node));
            if let Some(value) = given.or_else(|| argument.default.clone()) {
                arguments.insert(argument.name.clone(), value);
            }
        }
        arguments
    }

    fn value(&self, literal: &Literal) -> Value {
        let constant = literal.clone().into_const_with(|name| {
            let value = self.variables.get(name.as_str()).cloned().unwrap_or_default();
            ConstValue::from_json(value)
        });
        constant.ok().and_then(|value| value.into_json().ok()).unwrap_or_default()
    }
}

/// Whether a fragment on `on` is about objects of type `ty`.
pub(super) fn applies(on: &str, ty: &str) -> bool {
    on == ty || on == "Node" && schema::field(ty, "id").is_some()
}

/// What came out.
pub(super) struct Outcome {
    pub(super) data: Option<Value>,
    pub(super) errors: Vec<Error>,
    pub(super) searches: Vec<Value>,
    pub(super) cost: u64,
}

/// Runs the query `set` on `shop`.
pub(super) fn run(shop: &Shop, document: &Document<'_>, set: &SelectionSet) -> Outcome {
    let mut run = Run { shop, document, errors: Vec::new(), searches: Vec::new(), cost: 0 };
    let data = run.object(&json!({"__typename": schema::QUERY}), &[set], &mut Vec::new());
    Outcome { data, errors: run.errors, searches: run.searches, cost: run.cost }
}

struct Run<'a> {
    shop: &'a Shop,
    document: &'a Document<'a>,
    errors: Vec<Error>,
    searches: Vec<Value>,
    cost: u64,
}

/// Each of these answers `None` when a null climbs out of it.
impl<'a> Run<'a> {
    fn object(&mut self, object: &Value, sets: &[&'a SelectionSet], path: &mut Vec<Value>) -> Option<Value> {
        let ty = object["__typename"].as_str().unwrap_or_default();
        let mut answer = Map::new();
        for (key, fields) in self.document.fields(ty, sets) {
            path.push(key.into());
            let value = self.field(ty, object, &fields, path);
            path.pop();
            answer.insert(key.into(), value?);
        }
        Some(Value::Object(answer))
    }

    fn field(
        &mut self,
        ty: &str,
        object: &Value,
        fields: &[&'a Field],
        path: &mut Vec<Value>,
    ) -> Option<Value> {
        let name = fields[0].name.node.as_str();
        if name == "__typename" {
            return Some(ty.into());
        }
        let definition = schema::field(ty, name)?;
        let arguments = self.document.arguments(definition, fields[0]);
        let value = match resolve::field(self.shop, object, name, &arguments, path, &mut self.searches) {
            Ok(value) => value,
            Err(error) => {
                self.errors.push(error.at(path).pos(fields[0].name.pos));
                return definition.ty.nullable.then_some(Value::Null);
            }
        };
        let sets: Vec<_> = fields.iter().map(|field| &field.selection_set.node).collect();
        self.complete(&definition.ty, &value, &sets, path)
    }

    fn complete(
        &mut self,
        ty: &Type,
        value: &Value,
        sets: &[&'a SelectionSet],
        path: &mut Vec<Value>,
    ) -> Option<Value> {
        let completed = match (&ty.base, value) {
            (_, Value::Null) => {
                if !ty.nullable {
                    let message = "Cannot return null for non-nullable field";
                    self.errors.push(Error::new(message, "INTERNAL_SERVER_ERROR").at(path));
                }
                None
            }
            (BaseType::List(inner), Value::Array(items)) => {
                let mut completed = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    path.push(index.into());
                    let item = self.complete(inner, item, sets, path);
                    path.pop();
                    completed.push(item);
                }
                completed.into_iter().collect::<Option<Vec<_>>>().map(Value::Array)
            }
            (BaseType::Named(_), Value::Object(_)) => {
                self.cost += super::cost::of_object(value["__typename"].as_str().unwrap_or_default());
                self.object(value, sets, path)
            }
            _ => Some(value.clone()),
        };
        completed.or_else(|| ty.nullable.then_some(Value::Null))
    }
}
