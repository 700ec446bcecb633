//! What no function may say, whatever it is asked: looked for in every answer that a test gets and in all that the
//! process has written, by [`Function`](crate::world::Function) itself.

use std::{collections::HashMap, sync::Mutex};

use reqwest::header::HeaderMap;

/// Lists the variables whose values only their owners may see.
const SECRET_VARIABLES: [&str; 9] = [
    "CRON_SECRET",
    "ENCRYPTION_KEY",
    "RESEND_API_KEY",
    "RESEND_WEBHOOK_SECRET",
    "SHOPIFY_CLIENT_SECRET",
    "STRIPE_SECRET_KEY",
    "SUPABASE_SECRET_KEY",
    "SUPABASE_SERVICE_ROLE_KEY",
    "SUPABASE_ACCESS_TOKEN",
];
/// Shorter values are made up by a test and may well be a word of ours.
const SHORTEST: usize = 8;
/// Tokens begin like this: the stand-ins' own and the vendors', whatever comes behind.
const TOKENS: [&str; 9] = [
    "sk_acct_token_",
    "sk_live_",
    "sk_test_",
    "rk_live_",
    "shpat_",
    "shprt_",
    "shpss_",
    "whsec_",
    "sb_secret_",
];

/// Holds what one function was given and asked.
pub(crate) struct Watch {
    secrets: Vec<(&'static str, String)>,
    asked: Mutex<Vec<String>>,
}

/// Says where something was said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Answer,
    Log,
}

impl Watch {
    pub(crate) fn new(vars: &HashMap<String, String>) -> Self {
        let value = |name: &&'static str| Some((*name, vars.get(*name)?.trim().to_owned()));
        let pings = vars.iter().filter(|(name, _)| name.starts_with("PING_URL_"));
        let secrets = SECRET_VARIABLES.iter().filter_map(value);
        let secrets = secrets.chain(pings.map(|(_, url)| ("PING_URL_…", url.clone())));
        Self {
            secrets: secrets.filter(|(_, value)| value.len() >= SHORTEST).collect(),
            asked: Mutex::default(),
        }
    }

    /// Notes a query that the function is about to be asked with.
    pub(crate) fn asks(&self, query: &str) {
        if query.contains('=') {
            self.asked.lock().expect("no test panics in between").push(query.to_owned());
        }
    }

    /// Fails the test whose answer says too much.
    pub(crate) fn answer(&self, headers: &HeaderMap, text: &str) {
        // A session's cookie is for its browser.
        let headers = headers.iter().filter(|(name, _)| *name != "set-cookie");
        let headers = headers.filter_map(|(_, value)| value.to_str().ok());
        for said in headers.chain([text]) {
            if let Some(leak) = self.leak(Place::Answer, said) {
                panic!("an answer holds {leak}: {said}");
            }
        }
    }

    /// Fails the test whose function wrote too much.
    pub(crate) fn log(&self, log: &str) {
        for line in log.lines() {
            if let Some(leak) = self.leak(Place::Log, line) {
                panic!("the log holds {leak}: {line}");
            }
        }
    }

    /// Returns what of somebody's is in this text.
    fn leak(&self, place: Place, text: &str) -> Option<String> {
        let secret = self.secrets.iter().find(|(_, value)| text.contains(value.as_str()));
        if let Some((name, _)) = secret {
            return Some(format!("the value of {name}"));
        }
        // Said of a value: what it has to begin with.
        let text = TOKENS.iter().fold(text.to_owned(), |text, token| text.replace(&format!("{token}…"), ""));
        let text = text.replace("commencer par whsec_", "");
        if let Some(token) = TOKENS.into_iter().find(|token| text.contains(token)) {
            return Some(format!("a token ({token}…)"));
        }
        if text.contains(".eyJ") {
            return Some("a JWT".into());
        }
        if has_stored_token(&text) {
            return Some("an encrypted token".into());
        }
        if let Some(address) = address(&text) {
            return Some(format!("an address ({address})"));
        }
        // The instructions of a manual route show how to call it.
        if text.replace("secret=VOTRE_CRON_SECRET", "").contains("secret=") {
            return Some("a secret in a query".into());
        }
        if place == Place::Log {
            let asked = self.asked.lock().expect("no test panics in between");
            if asked.iter().any(|query| text.contains(query.as_str())) {
                return Some("the query string of a request".into());
            }
            // "une adresse https://… complète" is none.
            let text = text.replace("https://…", "");
            if text.contains("http://") || text.contains("https://") {
                return Some("a URL".into());
            }
        }
        None
    }
}

/// Says whether a text contains `hex(iv):hex(blocks)`, as tokens are stored.
fn has_stored_token(text: &str) -> bool {
    text.match_indices(':').any(|(colon, _)| {
        let hex = |bytes: &mut dyn Iterator<Item = u8>| bytes.take_while(u8::is_ascii_hexdigit).count();
        let (before, after) = (&text.as_bytes()[..colon], &text.as_bytes()[colon + 1..]);
        hex(&mut before.iter().rev().copied()) >= 32 && hex(&mut after.iter().copied()) >= 32
    })
}

/// Returns the first whole mail address. A cut one, `a…@d…`, is none.
fn address(text: &str) -> Option<&str> {
    let part = |c: char| c.is_ascii_alphanumeric() || "._%+-".contains(c);
    text.match_indices('@').find_map(|(at, _)| {
        let start = text[..at]
            .rfind(|c| !part(c))
            .map_or(0, |index| index + text[index..].chars().next().map_or(1, char::len_utf8));
        let host = &text[at + 1..];
        let host = &host[..host.find(|c| !part(c)).unwrap_or(host.len())];
        let whole = start < at && host.trim_end_matches('.').contains('.') && !host.starts_with('.');
        whole.then(|| &text[start..at + 1 + host.len()])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        let vars = [
            ("CRON_SECRET", " a-secret-of-ours\n"),
            ("STRIPE_SECRET_KEY", "short"),
            ("PING_URL_MONTHLY_SYNC", "https://ping.example/5f0c0e52"),
            ("SENDER_IDENTITY", "Comptalyze SAS"),
        ];
        Watch::new(&vars.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
    }

    #[test]
    fn what_is_somebodys_is_found() {
        let watch = watch();
        watch.asks("month=2026-10");
        let stored = format!("{}:{}", "0f".repeat(16), "a7".repeat(16));
        for (text, what) in [
            ("x a-secret-of-ours x", "the value of CRON_SECRET"),
            ("see https://ping.example/5f0c0e52", "the value of PING_URL_"),
            ("key sk_live_51", "a token"),
            ("shpat_x", "a token"),
            ("eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoi", "a JWT"),
            (stored.as_str(), "an encrypted token"),
            ("to <camille.moreau@example.test>", "an address (camille.moreau@example.test)"),
            ("é@example.test a@b.fr", "an address (a@b.fr)"),
            ("?secret=x", "a secret in a query"),
        ] {
            for place in [Place::Answer, Place::Log] {
                let leak = watch.leak(place, text).unwrap_or_else(|| panic!("{text}"));
                assert!(leak.starts_with(what), "{text}: {leak}");
            }
        }
        for text in ["/api/x?month=2026-10", "GET https://api.example/"] {
            assert!(watch.leak(Place::Log, text).is_some() && watch.leak(Place::Answer, text).is_none());
        }
    }

    #[test]
    fn what_is_nobodys_is_not() {
        for text in [
            "short",
            "Comptalyze SAS",
            "c…@e… a pris contact",
            "RESEND_WEBHOOK_SECRET doit commencer par whsec_",
            "une clé sb_secret_… ou service_role",
            "?secret=VOTRE_CRON_SECRET",
            "une adresse https://… complète",
            "acct_1 et @media print { } et a@b",
            "5f0c0e52-8a4e-4c4b-9b0c-2f6d1a7e0001:5f0c0e52-8a4e-4c4b-9b0c-2f6d1a7e0001",
        ] {
            assert_eq!(watch().leak(Place::Log, text), None, "{text}");
        }
    }

    #[test]
    #[should_panic(expected = "an answer holds the value of CRON_SECRET")]
    fn a_header_is_part_of_an_answer() {
        let headers = [(reqwest::header::LOCATION, "/?a-secret-of-ours".parse().unwrap())];
        watch().answer(&headers.into_iter().collect(), "");
    }
}
