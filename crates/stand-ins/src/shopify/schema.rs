//! The part of Shopify's Admin schema that the stand-in answers, read from `admin.graphql`.

use std::{collections::HashMap, sync::LazyLock};

use async_graphql_parser::{
    parse_schema,
    types::{BaseType, FieldDefinition, Type, TypeKind, TypeSystemDefinition},
};
use serde_json::Value;

/// The schema as it is written, to be compared with Shopify's own.
pub const SOURCE: &str = include_str!("admin.graphql");

pub(super) const QUERY: &str = "QueryRoot";

pub(super) struct Field {
    pub(super) ty: Type,
    pub(super) arguments: Vec<Argument>,
}

pub(super) struct Argument {
    pub(super) name: String,
    pub(super) ty: Type,
    pub(super) default: Option<Value>,
}

/// The types that have fields; what is not in here is a scalar or an enum.
static TYPES: LazyLock<HashMap<String, HashMap<String, Field>>> = LazyLock::new(|| {
    let document = parse_schema(SOURCE).expect("admin.graphql is a schema");
    let mut types = HashMap::new();
    for definition in document.definitions {
        let TypeSystemDefinition::Type(definition) = definition else { continue };
        let fields = match definition.node.kind {
            TypeKind::Object(object) => object.fields,
            TypeKind::Interface(interface) => interface.fields,
            _ => continue,
        };
        let fields = fields.into_iter().map(|field| read(field.node)).collect();
        types.insert(definition.node.name.node.to_string(), fields);
    }
    types
});

fn read(field: FieldDefinition) -> (String, Field) {
    let arguments = field.arguments.into_iter().map(|argument| Argument {
        name: argument.node.name.node.to_string(),
        ty: argument.node.ty.node,
        default: argument.node.default_value.and_then(|value| value.node.into_json().ok()),
    });
    (field.name.node.to_string(), Field { arguments: arguments.collect(), ty: field.ty.node })
}

pub(super) fn has_type(name: &str) -> bool {
    TYPES.contains_key(name)
}

pub(super) fn field(ty: &str, name: &str) -> Option<&'static Field> {
    TYPES.get(ty)?.get(name)
}

/// Whether one selects fields of this type.
pub(super) fn is_composite(ty: &Type) -> bool {
    has_type(name(ty))
}

/// The type's name without its lists and exclamation marks.
pub(super) fn name(ty: &Type) -> &str {
    match &ty.base {
        BaseType::Named(name) => name,
        BaseType::List(inner) => name(inner),
    }
}

/// Whether it is a list.
pub(super) fn is_list(ty: &Type) -> bool {
    matches!(ty.base, BaseType::List(_))
}
