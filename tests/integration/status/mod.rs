//! The status page: who is let in, what it shows, what it may have done.

mod actions;
mod browser;
mod doors;
mod facts;
mod own_address;
mod user;

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::Value;

use crate::world::{Answer, Function, SECRET, World};

/// Represents a browser: it keeps its cookie, sends forms, follows nothing.
struct Browser<'a> {
    function: &'a Function,
    http: reqwest::Client,
    cookie: Option<String>,
    /// Is its address, as the platform would say it.
    address: Option<String>,
}

impl<'a> Browser<'a> {
    fn new(function: &'a Function) -> Result<Self> {
        Ok(Self { function, http: jobs::http::client()?, cookie: None, address: None })
    }

    fn from(function: &'a Function, address: impl Into<String>) -> Result<Self> {
        Ok(Self { address: Some(address.into()), ..Self::new(function)? })
    }

    async fn signed_in(function: &'a Function) -> Result<Self> {
        let mut browser = Self::new(function)?;
        let answer = browser.form(&[("secret", SECRET)]).await?;
        anyhow::ensure!(answer.status == 303, "{} {}", answer.status, answer.text);
        Ok(browser)
    }

    async fn get(&mut self, query: &str) -> Result<Answer> {
        let url = format!("{}{query}", self.function.url());
        self.send(self.http.get(url)).await
    }

    async fn form(&mut self, fields: &[(&str, &str)]) -> Result<Answer> {
        self.send(self.http.post(self.function.url()).form(fields)).await
    }

    /// Sends a form of the page as it is now.
    async fn own_form(&mut self, fields: &[(&str, &str)]) -> Result<Answer> {
        let page = self.get("").await?.text;
        let (_, rest) = page.split_once("name=\"csrf\" value=\"").context("a page without a form")?;
        let token = rest.split('"').next().unwrap_or_default().to_owned();
        self.form(&[fields, &[("csrf", token.as_str())]].concat()).await
    }

    async fn send(&mut self, request: reqwest::RequestBuilder) -> Result<Answer> {
        let mut request = request.header("accept", "text/html,*/*;q=0.8");
        if let Some(cookie) = &self.cookie {
            request = request.header("cookie", cookie);
        }
        if let Some(address) = &self.address {
            request = request.header("x-vercel-forwarded-for", address);
        }
        let answer = self.function.send(request).await?;
        if let Some(set) = answer.headers.get("set-cookie") {
            self.cookie = set.to_str()?.split(';').next().map(str::to_owned);
        }
        Ok(answer)
    }
}

/// Returns the JSON of the Bearer.
pub(crate) async fn json(function: &Function) -> Result<Value> {
    let request = jobs::http::client()?.get(function.url()).bearer_auth(SECRET);
    let answer = function.send(request.header("accept", "application/json")).await?;
    anyhow::ensure!(answer.status == 200, "{}", answer.text);
    Ok(answer.json())
}

/// Makes a caller's POST with the Bearer.
async fn post(function: &Function, fields: &[(&str, &str)]) -> Result<Answer> {
    let request = jobs::http::client()?.post(function.url()).bearer_auth(SECRET).form(fields);
    function.send(request.header("accept", "application/json")).await
}

/// Waits until a query answers true: work goes on after the answer.
async fn eventually(world: &World, sql: &'static str) -> Result<()> {
    for _ in 0..200 {
        if world.value(sql).await? {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    anyhow::bail!("still not: {sql}")
}

async fn wrong(
    function: &Function,
    method: Method,
    authorization: Option<&str>,
    query: &str,
) -> Result<Answer> {
    function.call(method, query, authorization).await
}
