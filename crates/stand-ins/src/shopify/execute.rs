//! Runs a validated document. The library selects, takes the arguments, completes the values and lets nulls climb;
//! here are the objects it asks.

use std::cell::RefCell;

use apollo_compiler::{
    ExecutableDocument,
    executable::Operation,
    resolvers::{Execution, FieldError, ObjectValue, ResolveInfo, ResolvedValue},
    response::{GraphQLError, JsonMap, JsonValue, ResponseDataPathSegment, serde_json_bytes::ByteString},
    validation::Valid,
};
use serde_json::{Value, json};

use super::{cost, errors::Error, resolve, schema, state::Shop};

/// Holds what came out of a query.
pub(super) struct Outcome {
    pub(super) data: Option<Value>,
    pub(super) errors: Vec<Error>,
    pub(super) searches: Vec<Value>,
    pub(super) cost: u64,
}

/// Runs `operation` on `shop`.
pub(super) fn run(
    shop: &Shop,
    document: &Valid<ExecutableDocument>,
    operation: &Operation,
    variables: &Valid<JsonMap>,
) -> Result<Outcome, Error> {
    let notes = RefCell::default();
    let root = Object { shop, value: json!({"__typename": schema::QUERY}), path: Vec::new(), notes: &notes };
    let response = Execution::new(&schema::SCHEMA, document)
        .operation(operation)
        .coerced_variable_values(variables)
        .execute_sync(&root)
        .map_err(|error| Error::new(error.message().to_string(), "BAD_REQUEST"))?;
    drop(root);
    let Notes { errors: ours, searches, cost } = notes.into_inner();
    let errors = response.errors.into_iter().map(|error| with_code(error, &ours)).collect();
    let mut data = response.data.map(|data| json!(data));
    if let Some(data) = &mut data {
        shop.show(data);
    }
    Ok(Outcome { data, errors, searches, cost })
}

/// Returns the error of a field: as its resolver has put it, or a null where there can be none.
fn with_code(error: GraphQLError, ours: &[Error]) -> Error {
    let segment = |segment: ResponseDataPathSegment| match segment {
        ResponseDataPathSegment::Field(name) => Value::from(name.as_str()),
        ResponseDataPathSegment::ListIndex(index) => index.into(),
    };
    let path: Vec<Value> = error.path.into_iter().map(segment).collect();
    let known = ours.iter().find(|ours| ours.path == path).cloned();
    let mut told = known.unwrap_or_else(|| Error::new(error.message, "INTERNAL_SERVER_ERROR").at(&path));
    told.location = error.locations.first().map(|at| (at.line, at.column));
    told
}

/// Holds what is noted while objects are asked.
#[derive(Default)]
struct Notes {
    errors: Vec<Error>,
    searches: Vec<Value>,
    cost: u64,
}

/// Represents an object of the answer, and where it stands in it.
struct Object<'a> {
    shop: &'a Shop,
    value: Value,
    path: Vec<Value>,
    notes: &'a RefCell<Notes>,
}

impl<'a> Object<'a> {
    fn resolved(&self, value: Value, path: Vec<Value>) -> ResolvedValue<'a> {
        match value {
            Value::Object(_) => {
                let (shop, notes) = (self.shop, self.notes);
                let object = Object { shop, value, path, notes };
                notes.borrow_mut().cost += cost::of_object(object.type_name());
                ResolvedValue::object(object)
            }
            Value::Array(items) => {
                let item = |(index, item): (usize, Value)| {
                    let mut path = path.clone();
                    path.push(index.into());
                    self.resolved(item, path)
                };
                ResolvedValue::list(items.into_iter().enumerate().map(item).collect::<Vec<_>>())
            }
            leaf => ResolvedValue::leaf(leaf),
        }
    }
}

impl ObjectValue for Object<'_> {
    fn type_name(&self) -> &str {
        self.value["__typename"].as_str().unwrap_or_default()
    }

    fn resolve_field<'a>(&'a self, info: &'a ResolveInfo<'a>) -> Result<ResolvedValue<'a>, FieldError> {
        let mut path = self.path.clone();
        path.push(info.field_selections()[0].response_key().as_str().into());
        let plain = |(name, value): (_, &JsonValue)| (ByteString::as_str(name).to_owned(), json!(value));
        let arguments = info.arguments().iter().map(plain).collect();
        let mut searches = Vec::new();
        let found =
            resolve::field(self.shop, &self.value, info.field_name(), &arguments, &path, &mut searches);
        self.notes.borrow_mut().searches.append(&mut searches);
        match found {
            Ok(value) => Ok(self.resolved(value, path)),
            Err(error) => {
                let message = error.message.clone();
                self.notes.borrow_mut().errors.push(error.at(&path));
                Err(FieldError { message })
            }
        }
    }
}
