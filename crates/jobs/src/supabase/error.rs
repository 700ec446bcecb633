//! What can go wrong between us and the database, classified once.

use serde::Deserialize;

use crate::{
    http::NetworkFault,
    retry::{RetryDecision, Retryable},
};

/// PostgREST's error body, as it came.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct ApiError {
    /// `PGRST…` or an SQLSTATE.
    pub code: String,
    pub message: String,
    pub details: Option<String>,
    pub hint: Option<String>,
}

/// Why a call did not bring an answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SupabaseError {
    /// No answer at all.
    #[error("no answer from the database: {0}")]
    Network(NetworkFault),
    /// A gateway's own word, a page of HTML, another service: whatever is not PostgREST's.
    #[error("something else answered {status} in the database's place")]
    NotPostgrest { status: u16 },
    /// PostgREST's own word.
    #[error("{function}: {status} {} {}{}", error.code, error.message, hint(error))]
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

fn hint(error: &ApiError) -> String {
    error.hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default()
}

impl SupabaseError {
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

    /// What is wrong and what to do, for the operator: French, no value of the configuration.
    pub fn user_message(&self) -> String {
        match self {
            Self::Network(NetworkFault::Timeout) => "La base de données ne répond pas à temps.".into(),
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

    /// Whether the fault is ours to mend (a 500) rather than a passing trouble (a 503).
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::MissingMigration { .. } | Self::BadKey | Self::NotServiceKey | Self::Shape { .. } => true,
            // Another service has that address.
            Self::NotPostgrest { .. } => !self.is_passing(),
            _ => false,
        }
    }

    /// Whether the same call may well succeed a little later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Network(fault) => *fault != NetworkFault::TooLarge,
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
    use rstest::rstest;

    use super::*;

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
