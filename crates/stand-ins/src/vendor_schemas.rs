//! Checks documents and answers against the vendors' own schemas.
//!
//! Shopify's Admin schema and Stripe's types ship in their npm packages. The packages pinned in `npm/schemas`
//! are installed once per version of the lock file; two node scripts beside it do the checking.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use processes::npm::Set;
use serde_json::{Value, json};

use crate::node_script;

/// Installs what Stripe and Shopify publish about their answers, and what reads it.
const SCHEMAS: Set = Set {
    name: "schemas",
    manifest: include_str!("../npm/schemas/package.json"),
    lock: include_str!("../npm/schemas/package-lock.json"),
    finish: |_| Ok(()),
};

/// Represents a GraphQL exchange: what was asked, and what was answered.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub document: String,
    pub variables: Value,
    /// Is the whole answer, with its `data`.
    pub response: Value,
}

/// Checks that `document` is valid Admin GraphQL of version 2026-10 without deprecated fields, and that
/// `response` is a possible answer to it: no null where there can be none, no unknown enum value, no scalar
/// of another kind, no field missing or too many.
///
/// # Errors
/// Says what is wrong, or why the check could not be made.
pub async fn check_shopify(document: &str, variables: &Value, response: &Value) -> anyhow::Result<()> {
    let exchange =
        Exchange { document: document.into(), variables: variables.clone(), response: response.clone() };
    check_shopify_all(&[exchange]).await
}

/// Checks the same for many, which loads the schema only once.
///
/// # Errors
/// Says what is wrong, or why the check could not be made.
pub async fn check_shopify_all(exchanges: &[Exchange]) -> anyhow::Result<()> {
    let answers: Vec<Value> = exchanges
        .iter()
        .map(|exchange| {
            json!({
                "document": exchange.document,
                "variables": exchange.variables,
                "response": exchange.response,
            })
        })
        .collect();
    check("shopify.mjs", &json!({"subset": null, "answers": answers})).await
}

/// Checks that everything in `sdl` is part of Shopify's Admin schema.
///
/// # Errors
/// Says what is wrong, or why the check could not be made.
pub async fn check_shopify_subset(sdl: &str) -> anyhow::Result<()> {
    check("shopify.mjs", &json!({"subset": sdl, "answers": []})).await
}

/// Checks that `json` is a value of Stripe's TypeScript type: `BalanceTransaction`, `Account`,
/// `ApiList<BalanceTransaction>`…
///
/// # Errors
/// Says what is wrong, or why the check could not be made.
pub async fn check_stripe(type_name: &str, json: &Value) -> anyhow::Result<()> {
    check_stripe_all(&[(type_name, json)]).await
}

/// Checks the same for many, which starts the compiler only once.
///
/// # Errors
/// Says what is wrong, or why the check could not be made.
pub async fn check_stripe_all(values: &[(&str, &Value)]) -> anyhow::Result<()> {
    let checks: Vec<Value> =
        values.iter().map(|(type_name, json)| json!({"type": type_name, "json": json})).collect();
    check("stripe.mjs", &checks.into()).await
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("npm/schemas")
}

async fn check(script: &str, input: &Value) -> anyhow::Result<()> {
    let wrong: Vec<String> = node_script::run(SCHEMAS, &sources().join(script), input).await?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
