//! The page of one user: found, shown, asked, acted on.

mod actions;
mod doors;
mod hostile;
mod money;
mod questions;
mod sizes;

use anyhow::{Result, ensure};
use serde_json::Value;
use uuid::Uuid;

use crate::world::{Answer, Function, SECRET};

/// Asks with the Bearer, for JSON unless told otherwise.
async fn ask(function: &Function, query: &str, accept: &str) -> Result<Answer> {
    let url = format!("{}?{query}", function.url());
    let request = jobs::http::client()?.get(url).bearer_auth(SECRET);
    function.send(request.header("accept", accept)).await
}

/// The JSON of a user's page.
async fn look(function: &Function, user: Uuid, more: &str) -> Result<Value> {
    let answer = ask(function, &format!("user={user}{more}"), "application/json").await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text);
    Ok(answer.json())
}
