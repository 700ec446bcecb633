//! Makes a call of a function as its caller does, and shows its answer as a person reads it.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::Value;

/// This is longer than a function may run.
const PATIENCE: Duration = Duration::from_secs(310);

/// Says who calls.
#[derive(Clone, Copy, Debug)]
pub(super) enum Caller {
    /// Vercel Cron calls, for this expression.
    Cron(&'static str),
    /// Somebody calls with the secret and `curl`.
    Operator,
}

impl Caller {
    fn method(self) -> Method {
        match self {
            Self::Cron(_) => Method::GET,
            Self::Operator => Method::POST,
        }
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cron(schedule) => write!(f, "Vercel Cron `{schedule}`"),
            Self::Operator => f.write_str("an operator"),
        }
    }
}

/// Holds what came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
    text: String,
    took: Duration,
}

/// Calls functions.
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    secret: String,
}

impl Client {
    pub(super) fn new(base: String, secret: &str) -> Result<Self> {
        // reqwest wants a TLS provider even for plain HTTP. Somebody may have installed it before: fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .timeout(PATIENCE)
            .build()
            .context("no HTTP client")?;
        Ok(Self { http, base, secret: secret.into() })
    }

    /// Makes the call, and prints it with its answer.
    pub(super) async fn call(&self, caller: Caller, target: &str) -> Result<Answer> {
        println!("\n━━ {} {target}\n   as {caller}", caller.method());
        let answer = self.make(caller, target).await?;
        println!("{answer}");
        Ok(answer)
    }

    /// Makes the call, and prints it in a line.
    pub(super) async fn call_briefly(&self, caller: Caller, target: &str) -> Result<Answer> {
        let answer = self.make(caller, target).await?;
        println!(
            "   {:<4} {target}  {} in {:.2} s",
            caller.method(),
            answer.status,
            answer.took.as_secs_f32()
        );
        Ok(answer)
    }

    async fn make(&self, caller: Caller, target: &str) -> Result<Answer> {
        let request = self.http.request(caller.method(), format!("{}{target}", self.base));
        let request = match caller {
            Caller::Cron(schedule) => {
                request.header("user-agent", "vercel-cron/1.0").header("x-vercel-cron-schedule", schedule)
            }
            Caller::Operator => request.header("user-agent", "curl/8.14.1"),
        };
        let started = Instant::now();
        let response =
            request.bearer_auth(&self.secret).send().await.context("the functions do not answer")?;
        let status = response.status().as_u16();
        let text = response.text().await.context("the answer breaks off")?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Answer { status, body, text, took: started.elapsed() })
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = if self.body.is_null() { self.text.clone() } else { pretty(&self.text) };
        write!(f, "   {} in {:.2} s\n{}", self.status, self.took.as_secs_f32(), indent(&text))
    }
}

fn indent(text: &str) -> String {
    text.lines().fold(String::new(), |mut indented, line| {
        let _ = write!(indented, "{}   {line}", if indented.is_empty() { "" } else { "\n" });
        indented
    })
}

/// No longer innermost object or list stays on one line.
const SHORT: usize = 90;

/// Spreads JSON over lines, as it came: the order of keys and the digits of numbers are the answer's own.
fn pretty(json: &str) -> String {
    let mut out = String::new();
    let (mut depth, mut rest) = (0, json);
    let line = |out: &mut String, depth: usize| {
        let _ = write!(out, "\n{:1$}", "", depth * 2);
    };
    while let Some(next) = rest.chars().next() {
        let token = match next {
            '"' => string(rest),
            '{' | '[' => flat(rest).unwrap_or(&rest[..1]),
            _ => &rest[..next.len_utf8()],
        };
        match next {
            '}' | ']' => {
                depth -= 1;
                line(&mut out, depth);
                out.push(next);
            }
            '{' | '[' if token.len() == 1 => {
                depth += 1;
                out.push(next);
                line(&mut out, depth);
            }
            '{' | '[' => out.push_str(&spaced(token)),
            ',' => {
                out.push(',');
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ if next.is_whitespace() => {}
            _ => out.push_str(token),
        }
        rest = &rest[token.len()..];
    }
    out
}

/// Returns the string literal that `text` begins with.
fn string(text: &str) -> &str {
    let mut escaped = false;
    let end = text.char_indices().skip(1).find(|(_, c)| {
        let ends = *c == '"' && !escaped;
        escaped = *c == '\\' && !escaped;
        ends
    });
    end.map_or(text, |(at, _)| &text[..=at])
}

/// Returns the object or list that `text` begins with, where it is short and holds no other.
fn flat(text: &str) -> Option<&str> {
    let mut at = 1;
    while at < text.len().min(SHORT) {
        match text.as_bytes()[at] {
            b'"' => at += string(&text[at..]).len(),
            b'{' | b'[' => return None,
            b'}' | b']' => return Some(&text[..=at]),
            _ => at += 1,
        }
    }
    None
}

/// Writes `{"a": 1, "b": 2}`, whatever the spaces in `text`.
fn spaced(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(next) = rest.chars().next() {
        let token = if next == '"' { string(rest) } else { &rest[..next.len_utf8()] };
        if !next.is_whitespace() {
            out.push_str(token);
        }
        if matches!(next, ',' | ':') {
            out.push(' ');
        }
        rest = &rest[token.len()..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_spread_as_they_came() {
        let json = r#"{"message":"Terminé : \"oui\", {x}","z":{"b":12.50,"a":[]},"results":[{"list": [1,  2]},{"a":"é"}]}"#;
        let expected = r#"{
  "message": "Terminé : \"oui\", {x}",
  "z": {
    "b": 12.50,
    "a": []
  },
  "results": [
    {
      "list": [1, 2]
    },
    {"a": "é"}
  ]
}"#;
        assert_eq!(pretty(json), expected);
        let compact: String = pretty(json).split_whitespace().collect();
        assert_eq!(compact, json.split_whitespace().collect::<String>());
    }
}
