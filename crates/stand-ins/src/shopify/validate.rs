//! Refuses documents that Shopify would refuse, with its codes.

use apollo_compiler::{
    ExecutableDocument,
    executable::Operation,
    request::coerce_variable_values,
    response::JsonMap,
    validation::{DiagnosticList, Valid},
};
use serde_json::{Map, Value};

use super::{errors::Error, schema::SCHEMA};

/// Reads a document, or says everything that is wrong with it.
pub(super) fn document(query: &str) -> Result<Valid<ExecutableDocument>, Vec<Error>> {
    // In two steps: a field that is not known leaves a selection empty, which would be told first.
    let document =
        ExecutableDocument::parse(&SCHEMA, query, "query").map_err(|wrong| refusals(&wrong.errors))?;
    document.validate(&SCHEMA).map_err(|wrong| refusals(&wrong.errors))
}

fn refusals(wrong: &DiagnosticList) -> Vec<Error> {
    let refusal = |code: &str, message: String, at: Option<(usize, usize)>| {
        let mut error = Error::new(message, code);
        error.location = at;
        error
    };
    wrong
        .iter()
        .map(|found| {
            let at = found.line_column_range().map(|range| (range.start.line, range.start.column));
            refusal(code(found.error.unstable_error_name()), found.error.to_string(), at)
        })
        .collect()
}

/// Shopify's code for an error that the library names. Without a name it is one of the syntax.
fn code(name: Option<&'static str>) -> &'static str {
    match name {
        None => "PARSING_ERROR",
        Some("UndefinedField") => "undefinedField",
        Some("MissingSubselection" | "SubselectionOnScalarType" | "SubselectionOnEnumType") => {
            "selectionMismatch"
        }
        Some("RequiredArgument") => "missingRequiredArguments",
        Some("UndefinedArgument") => "argumentNotAccepted",
        Some("UniqueArgument") => "argumentNotUnique",
        Some("UnsupportedValueType" | "IntCoercionError" | "FloatCoercionError" | "UndefinedEnumValue") => {
            "argumentLiteralsIncompatible"
        }
        Some("DisallowedVariableUsage") => "variableMismatch",
        Some("UnusedVariable") => "variableNotUsed",
        Some("UndefinedVariable") => "variableNotDefined",
        Some("UndefinedFragment" | "UnusedFragment") => "useAndDefineFragment",
        Some("InvalidFragmentSpread") => "cannotSpreadFragment",
        Some("RecursiveFragmentDefinition") => "infiniteLoop",
        Some("ConflictingFieldType" | "ConflictingFieldName" | "ConflictingFieldArgument") => "fieldConflict",
        Some("UndefinedDirective") => "undefinedDirective",
        Some("UndefinedRootOperation") => "STAND_IN_LIMIT",
        Some(name) if name.starts_with("Undefined") => "undefinedType",
        Some(name) => name,
    }
}

/// Returns the values of the variables: given, by default, or none.
pub(super) fn variables(operation: &Operation, given: &Map<String, Value>) -> Result<Valid<JsonMap>, Error> {
    let given = given.iter().map(|(name, value)| (name.as_str().into(), value.clone().into())).collect();
    coerce_variable_values(&SCHEMA, operation, &given)
        .map_err(|error| Error::new(error.message().to_string(), "INVALID_VARIABLE"))
}
