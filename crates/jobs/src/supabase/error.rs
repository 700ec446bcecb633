//! Classifies once what can go wrong between us and the database.

use serde::Deserialize;

use crate::{
    http::NetworkError,
    retry::{RetryDecision, Retryable},
};

/// Is PostgREST's error body, as it came.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct ApiError {
    /// `PGRST…` or an SQLSTATE.
    pub code: String,
    pub message: String,
    pub details: Option<String>,
    pub hint: Option<String>,
}

/// Says why a call did not bring an answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SupabaseError {
    /// No answer at all.
    #[error("no answer from the database: {0}")]
    Network(NetworkError),
    /// A gateway's own word, a page of HTML, another service: whatever is not PostgREST's.
    #[error("something else answered {status} in the database's place")]
    NotPostgrest { status: u16 },
    /// PostgREST's own word.
    #[error("{function}: {status} {} {}{}", error.code, without_value(&error.message), hint(error))]
    Api { function: &'static str, status: u16, error: ApiError },
    /// A function of ours is missing: the migrations were not applied.
    #[error("function {function} is missing in the database")]
    MissingMigration { function: &'static str },
    /// The key is refused.
    #[error("the database refuses the key")]
    BadKey,
    /// The key is good, and not allowed to call our functions: it is not a service key.
    #[error("the key is not a service key")]
    NotServiceKey,
    /// The answer does not have the shape this version expects.
    #[error("{function}: unexpected answer: {error}")]
    Shape { function: &'static str, error: String },
    /// The arguments cannot be sent.
    #[error("cannot encode the call: {0}")]
    Encoding(String),
    /// The invocation's time is over.
    #[error("out of time")]
    OutOfTime,
}

/// Returns a text without what stands between its first and its last quotation mark.
fn without_quoted(text: &str) -> String {
    match (text.find('"'), text.rfind('"')) {
        (Some(first), Some(last)) => format!("{}…{}", &text[..first], &text[last + 1..]),
        _ => text.to_owned(),
    }
}

/// Returns PostgreSQL's message without the value that it quotes behind a colon: that is a row's, not ours.
fn without_value(message: &str) -> String {
    match message.split_once(": \"") {
        Some((words, _)) => format!("{words}: …"),
        None => message.to_owned(),
    }
}

fn hint(error: &ApiError) -> String {
    error.hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default()
}

impl SupabaseError {
    /// Returns the error for an answer that does not fit: what serde says of it, without what it quotes of the answer.
    pub(super) fn shape(function: &'static str, error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let words = text.strip_suffix(&place).unwrap_or(&text);
        let words = without_quoted(words);
        // The variant is the answer's; those that are expected are ours, but so may a hostile one look.
        let words = match words.split_once("unknown variant `") {
            Some((before, _)) => format!("{before}unknown variant …, expected another"),
            None => words,
        };
        Self::Shape { function, error: words + &place }
    }

    /// Classifies an answer that is not a success.
    pub(super) fn from_answer(function: &'static str, status: u16, body: &[u8]) -> Self {
        let Ok(error) = serde_json::from_slice::<ApiError>(body) else {
            return Self::NotPostgrest { status };
        };
        match (status, error.code.as_str()) {
            // PGRST202: no such function; 42883: one of ours calls another that is missing.
            (_, "PGRST202" | "42883") => Self::MissingMigration { function },
            // 42501: the role behind the key may not execute it.
            (_, "42501") => Self::NotServiceKey,
            (401 | 403, _) => Self::BadKey,
            // PostgREST's errors have a code, a gateway's have none.
            (_, "") => Self::NotPostgrest { status },
            _ => Self::Api { function, status, error },
        }
    }

    /// Returns what is wrong and what to do, for the operator: French, no value of the configuration.
    pub fn user_message(&self) -> String {
        match self {
            Self::Network(NetworkError::Timeout) => "La base de données ne répond pas à temps.".into(),
            Self::Network(_) => "La base de données est injoignable ; vérifiez SUPABASE_URL.".into(),
            Self::NotPostgrest { status } => format!(
                "Une passerelle a répondu {status} à la place de la base de données ; vérifiez SUPABASE_URL et l’état du projet Supabase."
            ),
            Self::Api { status, error, .. } if self.is_passing() => {
                format!("La base de données est momentanément indisponible ({status} {}).", error.code)
            }
            Self::Api { function, status, error } => {
                format!("La base de données a refusé {function} ({status} {}).", error.code)
            }
            Self::MissingMigration { function } => format!(
                "La fonction {function} manque dans la base : appliquez les migrations de supabase/migrations."
            ),
            Self::BadKey => "La clé Supabase est refusée ; vérifiez SUPABASE_SECRET_KEY (ou SUPABASE_SERVICE_ROLE_KEY).".into(),
            Self::NotServiceKey => {
                "La clé Supabase n’est pas une clé de service ; il faut la clé secrète (sb_secret_…) ou service_role.".into()
            }
            Self::Shape { function, .. } => {
                format!("La réponse de {function} est inattendue : appliquez les migrations de cette version.")
            }
            Self::Encoding(_) => "L’appel à la base de données n’a pas pu être préparé.".into(),
            Self::OutOfTime => "Le temps imparti est écoulé avant la réponse de la base de données.".into(),
        }
    }

    /// Returns whether the fault is ours to mend (a 500) rather than a passing trouble (a 503).
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::MissingMigration { .. } | Self::BadKey | Self::NotServiceKey | Self::Shape { .. } => true,
            // Another service has that address.
            Self::NotPostgrest { .. } => !self.is_passing(),
            _ => false,
        }
    }

    /// Returns whether the same call may well succeed a little later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Network(fault) => *fault != NetworkError::TooLarge,
            Self::NotPostgrest { status } => *status >= 500 || *status == 429,
            // PGRST000–003: no connection or none in time; 40001, 40P01: lost against another transaction;
            // 53300: too many connections; 57P0x: the server restarts; 08…: the connection broke.
            Self::Api { status, error, .. } => {
                matches!(*status, 429 | 502 | 503 | 504)
                    || matches!(
                        error.code.as_str(),
                        "40001" | "40P01" | "53300" | "57P01" | "57P02" | "57P03"
                    )
                    || error.code.starts_with("PGRST00")
                    || error.code.starts_with("08")
            }
            _ => false,
        }
    }
}

impl Retryable for SupabaseError {
    fn retry(&self) -> RetryDecision {
        if self.is_passing() { RetryDecision::After(None) } else { RetryDecision::No }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::{damage::damaged, providers::Provider};

    fn classify(status: u16, body: &str) -> SupabaseError {
        SupabaseError::from_answer("jobs_claim", status, body.as_bytes())
    }

    #[rstest]
    #[case(404, r#"{"code":"PGRST202","message":"no","hint":null,"details":null}"#, true, false)]
    #[case(401, r#"{"message":"Invalid API key"}"#, true, false)]
    #[case(403, r#"{"code":"42501","message":"permission denied for function jobs_claim"}"#, true, false)]
    #[case(503, r#"{"code":"PGRST001","message":"no connection"}"#, false, true)]
    #[case(500, r#"{"code":"40P01","message":"deadlock detected"}"#, false, true)]
    #[case(500, r#"{"code":"57014","message":"canceling statement due to statement timeout"}"#, false, false)]
    #[case(400, r#"{"code":"22003","message":"numeric field overflow"}"#, false, false)]
    #[case(502, "<html>bad gateway</html>", false, true)]
    #[case(404, "<html>not found</html>", true, false)]
    #[case(502, r#"{"message":"An invalid response was received from the upstream server"}"#, false, true)]
    #[case(404, r#"{"message":"no Route matched with those values"}"#, true, false)]
    fn is_classified_once(
        #[case] status: u16,
        #[case] body: &str,
        #[case] configuration: bool,
        #[case] passing: bool,
    ) {
        let error = classify(status, body);
        assert_eq!(error.is_configuration(), configuration, "{error:?}");
        assert_eq!(error.retry() != RetryDecision::No, passing, "{error:?}");
    }

    #[test]
    fn what_the_database_quotes_of_a_row_is_not_repeated() {
        for message in [
            "invalid input syntax for type uuid: \"camille@example.test\"",
            "invalid input syntax for type json: \"camille@example.test\" and \"more\"",
            "unterminated: \"camille@example.test",
        ] {
            let body = serde_json::json!({"code": "22P02", "message": message, "details": "Key (email)=(camille@example.test)"});
            let error = classify(400, &body.to_string());
            assert!(!error.to_string().contains("camille"), "{error}");
            assert!(error.to_string().contains(": …") && error.to_string().contains("22P02"), "{error}");
        }
        let kept = classify(400, r#"{"code":"23514","message":"violates check constraint \"positive\""}"#);
        assert_eq!(kept.to_string(), "jobs_claim: 400 23514 violates check constraint \"positive\"");
    }

    #[test]
    fn what_does_not_fit_is_not_repeated() {
        let shape = |json: &str| {
            let error =
                serde_json::from_str::<std::collections::BTreeMap<String, Provider>>(json).unwrap_err();
            SupabaseError::shape("jobs_claim", &error).to_string()
        };
        let number = serde_json::from_str::<u64>(r#""shpat_a \"quoted\" secret""#).unwrap_err();
        assert_eq!(
            SupabaseError::shape("jobs_claim", &number).to_string(),
            "jobs_claim: unexpected answer: invalid type: string …, expected u64 at line 1 column 27"
        );
        assert!(
            shape(r#"{"a": "camille@example.test"}"#).contains("unknown variant …, expected"),
            "{}",
            shape(r#"{"a": "b"}"#)
        );
        assert!(!shape(r#"{"a": "x`, expected camille"}"#).contains("camille"));
        assert!(shape(r#"{"a": 7}"#).contains("line 1 column"));
    }

    proptest! {
        #[test]
        fn no_answer_panics(status in 100_u16..1000, body in damaged(serde_json::json!(
            {"code": "PGRST202", "message": "no", "hint": null, "details": null}
        ))) {
            let error = classify(status, &body.to_string());
            let _ = (error.is_configuration(), error.retry(), error.to_string(), error.user_message());
        }
    }

    #[test]
    fn an_error_keeps_what_postgrest_says() {
        let error =
            classify(400, r#"{"code":"23514","message":"violates check","hint":"look","details":"row"}"#);
        assert_eq!(error.to_string(), "jobs_claim: 400 23514 violates check (look)");
    }

    #[test]
    fn a_missing_migration_is_reported_as_such() {
        assert!(classify(404, r#"{"code":"PGRST202","message":"m"}"#).user_message().contains("migrations"));
    }
}
