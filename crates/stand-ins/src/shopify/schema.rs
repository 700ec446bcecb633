//! The part of Shopify's Admin schema that the stand-in answers, read from `admin.graphql`.

use std::sync::LazyLock;

use apollo_compiler::{Schema, validation::Valid};

/// Holds the schema as it is written, to be compared with Shopify's own.
pub const SOURCE: &str = include_str!("admin.graphql");

pub(super) const QUERY: &str = "QueryRoot";

pub(super) static SCHEMA: LazyLock<Valid<Schema>> = LazyLock::new(|| {
    Schema::parse_and_validate(SOURCE, "admin.graphql").expect("admin.graphql is a valid schema")
});
