//! Runs `cargo stack doctor https://…`: looks at a deployment from outside, as a stranger and as its operator.
//!
//! Without `CRON_SECRET` in the environment it asks what anybody may ask. With it, it also runs each manual route
//! dry (one row of `sync_logs` each, nothing else) and reads the status page. The secret is sent to the given
//! address only, in the header, and no redirect is followed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jobs::routes::{Kind, Route};
use reqwest::{Method, Response, StatusCode, header};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_mins(1);

/// These must not be published: the builder serves the whole repository where `public/` is missing.
const SOURCES: [&str; 9] = [
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "vercel.json",
    ".env",
    ".git/config",
    "api/cron/daily-orchestrator.rs",
    "crates/jobs/src/lib.rs",
    "supabase/migrations/20261122000000_application_baseline.sql",
];

/// Looks at everything, prints what it sees; whether all of it is well.
pub async fn run(address: &str, secret: Option<&str>) -> Result<bool> {
    let mut doctor = Doctor::new(address)?;
    doctor.strangers().await;
    doctor.sources().await;
    match secret {
        Some(secret) => doctor.operator(secret).await,
        None => println!("·  CRON_SECRET n’est pas dans l’environnement : ni essais ni page d’état."),
    }
    println!("\n{} points vérifiés, {} à corriger.", doctor.looked, doctor.found);
    Ok(doctor.found == 0)
}

struct Doctor {
    http: reqwest::Client,
    base: String,
    looked: usize,
    found: usize,
}

/// Represents an answer, as far as it is looked at.
struct Seen {
    status: StatusCode,
    location: Option<String>,
    html: bool,
    text: String,
}

impl Doctor {
    fn new(address: &str) -> Result<Self> {
        let url = reqwest::Url::parse(address).context("ce n’est pas une adresse")?;
        let local = matches!(url.host_str(), Some("127.0.0.1" | "localhost"));
        ensure!(url.scheme() == "https" || local, "l’adresse doit commencer par https://");
        Ok(Self {
            http: jobs::http::client()?,
            base: url.as_str().trim_end_matches('/').to_owned(),
            looked: 0,
            found: 0,
        })
    }

    fn note(&mut self, what: &str, verdict: Result<(), String>) {
        self.looked += 1;
        match verdict {
            Ok(()) => println!("✓  {what}"),
            Err(why) => {
                self.found += 1;
                println!("✗  {what}\n   {why}");
            }
        }
    }

    async fn ask(&self, method: Method, path: &str, bearer: Option<&str>) -> Result<Seen, String> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).timeout(PATIENCE);
        request = request.header(header::ACCEPT, "application/json");
        if let Some(bearer) = bearer {
            request = request.bearer_auth(bearer);
        }
        let answer: Response = request.send().await.map_err(|error| {
            let why = if error.is_timeout() { "pas de réponse à temps" } else { "pas de connexion" };
            why.to_owned()
        })?;
        let head = |name| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (status, location) = (answer.status(), head(header::LOCATION));
        let html = head(header::CONTENT_TYPE).is_some_and(|kind| kind.contains("html"));
        let text = answer.text().await.map_err(|_| "la réponse s’interrompt".to_owned())?;
        Ok(Seen { status, location, html, text })
    }

    /// Looks at what anybody gets.
    async fn strangers(&mut self) {
        for route in Route::ALL {
            let path = route.path();
            match route.kind() {
                Kind::Manual => {
                    let seen = self.ask(Method::GET, path, None).await;
                    self.note(&format!("GET {path} donne son mode d’emploi"), is(seen, 200));
                    let seen = self.ask(Method::POST, path, None).await;
                    self.note(&format!("POST {path} sans secret est refusé"), is(seen, 401));
                    let seen = self.ask(Method::POST, path, Some("un-autre-secret")).await;
                    self.note(&format!("POST {path} avec un autre secret est refusé"), is(seen, 401));
                }
                Kind::Cron => {
                    let seen = self.ask(Method::GET, path, Some("un-autre-secret")).await;
                    self.note(&format!("GET {path} avec un autre secret est refusé"), is(seen, 401));
                }
                Kind::Drain => {
                    let seen = self.ask(Method::POST, path, None).await;
                    self.note(&format!("POST {path} sans secret est refusé"), is(seen, 401));
                }
                Kind::Link => {
                    let seen = self.ask(Method::GET, &format!("{path}?t=1.x.y.z"), None).await;
                    self.note(
                        &format!("GET {path} avec un lien faux donne une page d’erreur"),
                        is(seen, 400),
                    );
                }
                Kind::Webhook => {
                    let seen = self.ask(Method::POST, path, None).await;
                    self.note("un webhook sans signature est refusé", is(seen, 401));
                }
                Kind::Page => {
                    let seen = self.ask(Method::GET, path, None).await;
                    self.note("la page d’état ne se montre pas sans secret", is(seen, 401));
                }
            }
        }
    }

    /// Looks for what must not be there.
    async fn sources(&mut self) {
        for path in SOURCES {
            let verdict = match self.ask(Method::GET, &format!("/{path}"), None).await {
                Ok(seen) if seen.status.is_success() => Err(format!(
                    "répond {} : les sources sont publiées ; il manque public/ avec un fichier dedans",
                    seen.status
                )),
                Ok(_) => Ok(()),
                Err(why) => Err(why),
            };
            self.note(&format!("/{path} n’est pas publié"), verdict);
        }
    }

    /// Looks at what the operator gets.
    async fn operator(&mut self, secret: &str) {
        for route in Route::ALL.into_iter().filter(|route| route.kind() == Kind::Manual) {
            let path = format!("{}?dry_run=true", route.path());
            let seen = self.ask(Method::POST, &path, Some(secret)).await;
            self.note(&format!("essai de {}", route.name()), is(seen, 200));
        }
        let status = self.ask(Method::GET, Route::Status.path(), Some(secret)).await;
        let checks = match &status {
            Ok(seen) if seen.status == StatusCode::OK && !seen.html => {
                serde_json::from_str::<Value>(&seen.text).ok()
            }
            _ => None,
        };
        self.note("la page d’état répond", is(status, 200));
        let checks = checks.as_ref().and_then(|body| body["health"].as_array()).cloned().unwrap_or_default();
        for check in checks {
            let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
            let verdict = match check["state"].as_str() {
                Some("à corriger") => {
                    let faults = check["faults"].as_array().into_iter().flatten().filter_map(Value::as_str);
                    let said = [text("message"), text("todo")].into_iter().chain(faults.map(str::to_owned));
                    Err(said.filter(|words| !words.is_empty()).collect::<Vec<_>>().join(" "))
                }
                _ => Ok(()),
            };
            self.note(&format!("état : {}", text("name")), verdict);
        }
    }
}

/// Returns whether an answer is what it must be; a redirect never is: a cron does not follow it.
fn is(seen: Result<Seen, String>, expected: u16) -> Result<(), String> {
    let seen = seen?;
    if seen.status.is_redirection() {
        let to = seen.location.unwrap_or_default();
        return Err(format!(
            "répond {} vers {to} : un cron ne suit pas les redirections ; donnez l’adresse finale",
            seen.status.as_u16()
        ));
    }
    if seen.status.as_u16() == expected {
        return Ok(());
    }
    let said = serde_json::from_str::<Value>(&seen.text).ok().and_then(|body| {
        let said = body["error"].as_str()?;
        Some(said.to_owned())
    });
    Err(format!("répond {} au lieu de {expected}. {}", seen.status.as_u16(), said.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(status: u16, text: &str) -> Seen {
        let status = StatusCode::from_u16(status).expect("a status");
        let location = status.is_redirection().then(|| "https://www.example.fr/".to_owned());
        Seen { status, location, html: false, text: text.to_owned() }
    }

    #[test]
    fn a_redirect_is_never_well_and_an_error_is_repeated() {
        assert_eq!(is(Ok(seen(401, "{}")), 401), Ok(()));
        assert!(is(Ok(seen(308, "")), 308).unwrap_err().contains("https://www.example.fr/"));
        let told = is(Ok(seen(500, r#"{"error":"CRON_SECRET manque"}"#)), 200).unwrap_err();
        assert!(told.contains("500 au lieu de 200") && told.contains("CRON_SECRET manque"), "{told}");
        assert_eq!(is(Err("pas de connexion".into()), 200), Err("pas de connexion".into()));
    }
}
