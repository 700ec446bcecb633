//! Refuses documents that Shopify would refuse, in its words.

use std::collections::{HashMap, HashSet};

use async_graphql_parser::{
    Positioned,
    types::{
        Field, FragmentDefinition, OperationDefinition, Selection, SelectionSet, Type, VariableDefinition,
    },
};
use async_graphql_value::{Name, Value as Literal};
use serde_json::{Map, Value, json};

use super::{errors::Error, execute::applies, schema};

/// Everything that is wrong with `operation`.
pub(super) fn operation(
    name: Option<&str>,
    operation: &OperationDefinition,
    fragments: &HashMap<Name, Positioned<FragmentDefinition>>,
) -> Vec<Error> {
    let root = name.map_or_else(|| "query".into(), |name| format!("query {name}"));
    let mut check = Check {
        variables: &operation.variable_definitions,
        fragments,
        used: HashSet::new(),
        errors: Vec::new(),
    };
    check.selections(schema::QUERY, &operation.selection_set.node, &mut vec![root.clone().into()]);
    for variable in &operation.variable_definitions {
        let name = variable.node.name.node.as_str();
        if !check.used.contains(name) {
            let message =
                format!("Variable ${name} is declared by {} but not used", root.trim_start_matches("query "));
            let error = Error::new(message, "variableNotUsed").extension("variableName", name);
            check.errors.push(error.at(&[root.clone().into()]).pos(variable.pos));
        }
    }
    check.errors
}

struct Check<'a> {
    variables: &'a [Positioned<VariableDefinition>],
    fragments: &'a HashMap<Name, Positioned<FragmentDefinition>>,
    used: HashSet<String>,
    errors: Vec<Error>,
}

impl Check<'_> {
    fn selections(&mut self, ty: &str, set: &SelectionSet, path: &mut Vec<Value>) {
        for selection in &set.items {
            for directive in selection.node.directives() {
                for (_, value) in &directive.node.arguments {
                    self.uses(value, None, "if", path);
                }
            }
            match &selection.node {
                Selection::Field(field) => {
                    path.push(field.node.response_key().node.as_str().into());
                    self.field(ty, field, path);
                    path.pop();
                }
                Selection::InlineFragment(fragment) => {
                    let on = fragment.node.type_condition.as_ref().map_or(ty, |on| on.node.on.node.as_str());
                    self.fragment(on, ty, &fragment.node.selection_set, path);
                }
                Selection::FragmentSpread(spread) => {
                    let name = &spread.node.fragment_name.node;
                    let Some(fragment) = self.fragments.get(name) else {
                        let message = format!("Fragment {name} was used, but not defined");
                        let error = Error::new(message, "useAndDefineFragment");
                        self.errors.push(error.at(path).pos(spread.pos));
                        continue;
                    };
                    let on = fragment.node.type_condition.node.on.node.as_str();
                    self.fragment(on, ty, &fragment.node.selection_set, path);
                }
            }
        }
    }

    fn fragment(&mut self, on: &str, ty: &str, set: &Positioned<SelectionSet>, path: &mut Vec<Value>) {
        if !schema::has_type(on) {
            let message = format!("No such type {on}, so it can't be a fragment condition");
            self.errors.push(Error::new(message, "undefinedType").at(path).pos(set.pos));
        } else if applies(on, ty) || ty == "Node" {
            self.selections(on, &set.node, path);
        } else {
            let message = format!("Fragment on {on} can't be spread inside {ty}");
            self.errors.push(Error::new(message, "cannotSpreadFragment").at(path).pos(set.pos));
        }
    }

    fn field(&mut self, ty: &str, field: &Positioned<Field>, path: &mut Vec<Value>) {
        let name = field.node.name.node.as_str();
        if name == "__typename" {
            return;
        }
        let Some(definition) = schema::field(ty, name) else {
            let error = Error::new(format!("Field '{name}' doesn't exist on type '{ty}'"), "undefinedField")
                .extension("typeName", ty)
                .extension("fieldName", name);
            self.errors.push(error.at(path).pos(field.pos));
            return;
        };
        self.arguments(name, definition, field, path);
        let (inner, set) = (schema::name(&definition.ty), &field.node.selection_set);
        match (schema::is_composite(&definition.ty), set.node.items.is_empty()) {
            (true, false) => self.selections(inner, &set.node, path),
            (false, true) => {}
            (true, true) => {
                let message = format!(
                    "Field must have selections (field '{name}' returns {inner} but has no selections. Did you \
                     mean '{name} {{ ... }}'?)"
                );
                self.errors.push(Error::new(message, "selectionMismatch").at(path).pos(field.pos));
            }
            (false, false) => {
                let message = format!(
                    "Selections can't be made on scalars (field '{name}' returns {inner} but has selections)"
                );
                self.errors.push(Error::new(message, "selectionMismatch").at(path).pos(field.pos));
            }
        }
    }

    fn arguments(
        &mut self,
        name: &str,
        definition: &schema::Field,
        field: &Positioned<Field>,
        path: &mut Vec<Value>,
    ) {
        for (argument, value) in &field.node.arguments {
            path.push(argument.node.as_str().into());
            if let Some(known) =
                definition.arguments.iter().find(|known| known.name == argument.node.as_str())
            {
                self.uses(value, Some(&known.ty), &known.name, path);
            } else {
                let message = format!("Field '{name}' doesn't accept argument '{}'", argument.node);
                let error = Error::new(message, "argumentNotAccepted")
                    .extension("name", name)
                    .extension("argumentName", argument.node.as_str());
                self.errors.push(error.at(path).pos(argument.pos));
            }
            path.pop();
        }
        for required in definition.arguments.iter().filter(|known| !known.ty.nullable) {
            if field.node.get_argument(&required.name).is_none() {
                let message = format!("Field '{name}' is missing required arguments: {}", required.name);
                let error =
                    Error::new(message, "missingRequiredArguments").extension("arguments", &required.name);
                self.errors.push(error.at(path).pos(field.pos));
            }
        }
    }

    /// Checks one argument's literal, or the variables it is made of, against its type.
    fn uses(&mut self, value: &Positioned<Literal>, ty: Option<&Type>, argument: &str, path: &[Value]) {
        match &value.node {
            Literal::Variable(name) => {
                self.used.insert(name.to_string());
                let declared = self.variables.iter().find(|variable| variable.node.name.node == *name);
                let Some(declared) = declared else {
                    let message = format!("Variable ${name} is used but not declared");
                    let error = Error::new(message, "variableNotDefined").extension("variableName", name);
                    self.errors.push(error.at(path).pos(value.pos));
                    return;
                };
                let given = &declared.node.var_type.node;
                let has_default = declared.node.default_value.is_some();
                if let Some(wanted) = ty.filter(|wanted| !fits(given, wanted, has_default)) {
                    let message = format!(
                        "Type mismatch on variable ${name} and argument {argument} ({given} / {wanted})"
                    );
                    let error = Error::new(message, "variableMismatch").extension("variableName", name);
                    self.errors.push(error.at(path).pos(value.pos));
                }
            }
            Literal::List(items) => {
                for item in items {
                    self.uses(&Positioned::new(item.clone(), value.pos), None, argument, path);
                }
            }
            literal => {
                let json = literal.clone().into_json().unwrap_or_default();
                if let Some(wanted) = ty.filter(|wanted| !is_a(&json, wanted)) {
                    let message = format!(
                        "Argument '{argument}' has an invalid value ({literal}). Expected type '{wanted}'."
                    );
                    let error = Error::new(message, "argumentLiteralsIncompatible");
                    self.errors.push(error.at(path).pos(value.pos));
                }
            }
        }
    }
}

/// Whether a variable of type `given` may stand where `wanted` is wanted.
fn fits(given: &Type, wanted: &Type, has_default: bool) -> bool {
    let bare = |ty: &Type| ty.to_string().replace('!', "");
    bare(given) == bare(wanted) && (wanted.nullable || !given.nullable || has_default)
}

/// Whether a JSON value is of this type.
fn is_a(value: &Value, ty: &Type) -> bool {
    if value.is_null() {
        return ty.nullable;
    }
    if schema::is_list(ty) {
        return value.as_array().is_none_or(|items| items.iter().all(Value::is_string));
    }
    match schema::name(ty) {
        "Int" => value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
        "Boolean" => value.is_boolean(),
        "ID" => value.is_string() || value.is_i64(),
        _ => value.is_string(),
    }
}

/// The values of the variables: given, by default, or none.
pub(super) fn variables(
    definitions: &[Positioned<VariableDefinition>],
    given: &Map<String, Value>,
) -> Result<Map<String, Value>, Error> {
    let mut values = Map::new();
    for definition in definitions {
        let (name, ty) = (definition.node.name.node.as_str(), &definition.node.var_type.node);
        let default = || definition.node.default_value.clone().and_then(|value| value.node.into_json().ok());
        let value = given.get(name).cloned().or_else(default);
        if !is_a(value.as_ref().unwrap_or(&Value::Null), ty) {
            let message = format!("Variable ${name} of type {ty} was provided invalid value");
            let mut error = Error::new(message, "INVALID_VARIABLE").pos(definition.pos);
            error.extensions["value"] = value.unwrap_or_default();
            error.extensions["problems"] = json!([{"path": [], "explanation": format!("Expected a {ty}")}]);
            return Err(error);
        }
        if let Some(value) = value {
            values.insert(name.into(), value);
        }
    }
    Ok(values)
}
