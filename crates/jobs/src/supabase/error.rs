//! Classifies once what can go wrong between us and the database.

use std::time::Duration;

use serde::Deserialize;

use crate::{
    http::NetworkError,
    retry::{RetryDecision, Retryable},
};

/// Is PostgREST's error body, as it came.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct ApiError {
    /// Is `PGRST…` or an SQLSTATE.
    pub code: String,
    pub message: String,
    pub details: Option<String>,
    pub hint: Option<String>,
}

/// Says why a call did not bring an answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SupabaseError {
    /// No answer came at all.
    #[error("no answer from the database: {0}")]
    Network(NetworkError),
    /// The answer is not PostgREST's: it is a gateway's own word, a page of HTML, or another
    /// service.
    #[error("something else answered {status} in the database's place")]
    NotPostgrest { status: u16 },
    /// PostgREST itself answers with an error.
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
    /// A token is refused that is not ours: Supabase's gateway makes one of an `sb_secret_…` key for each request, and
    /// PostgREST did not take it (<https://github.com/supabase/supabase/issues/49655>). The key is good, and it passes.
    #[error("the database refuses the gateway's token: {status} {code}")]
    TokenRefused { status: u16, code: String },
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

/// A token that is dated in the future is a matter of their clocks, whoever made it. Anything else that is wrong with a
/// token is wrong with the key where the key is the token.
fn token_refused(status: u16, error: ApiError, brings_token: bool) -> SupabaseError {
    let words = error.message.to_lowercase().replace(' ', "");
    if brings_token && !words.contains("future") && !words.contains("notyetvalid") {
        SupabaseError::BadKey
    } else {
        SupabaseError::TokenRefused { status, code: error.code }
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

    /// Classifies an answer that is not a success: by its code, and by its status only where it has none.
    /// `brings_token`: the key is itself the token that PostgREST judges.
    pub(super) fn from_answer(function: &'static str, status: u16, body: &[u8], brings_token: bool) -> Self {
        let Ok(error) = serde_json::from_slice::<ApiError>(body) else {
            return Self::NotPostgrest { status };
        };
        match (status, error.code.as_str()) {
            // PGRST202: no such function; 42883: one of ours calls another that is missing.
            (_, "PGRST202" | "42883") => Self::MissingMigration { function },
            // 42501: the role behind the key may not execute it.
            (_, "42501") => Self::NotServiceKey,
            (_, "PGRST301" | "PGRST303") => token_refused(status, error, brings_token),
            // No token reached PostgREST; or the gateway speaks, whose errors have no code.
            (_, "PGRST302") | (401 | 403, "") => Self::BadKey,
            (_, "") => Self::NotPostgrest { status },
            _ => Self::Api { function, status, error },
        }
    }

    /// Returns what is wrong and what to do, for the operator: French, no value of the configuration.
    pub fn user_message(&self) -> String {
        match self {
            Self::Network(NetworkError::Timeout) => "La base de données ne répond pas à temps.".into(),
            Self::Network(_) => "La base de données est injoignable ; vérifiez SUPABASE_URL.".into(),
            Self::NotPostgrest { status: 402 } => {
                "Supabase a restreint le projet (402) : quota dépassé ou facture en retard ; voir Usage et Billing chez Supabase.".into()
            }
            Self::NotPostgrest { status } => format!(
                "Une passerelle a répondu {status} à la place de la base de données ; vérifiez SUPABASE_URL et l’état du projet Supabase."
            ),
            Self::TokenRefused { status, code } => format!(
                "Supabase refuse momentanément le jeton de sa propre passerelle ({status} {code}) ; la clé n’est pas en cause."
            ),
            Self::Api { status, error, .. } if matches!(error.code.as_str(), "25006" | "53100") => format!(
                "La base de données n’accepte plus d’écriture ({status} {}) ; voir l’espace disque du projet Supabase.",
                error.code
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

    /// Returns whether a smaller question may be answered: this one took longer than a statement may, or its answer is
    /// larger than we take.
    pub fn asks_too_much(&self) -> bool {
        match self {
            Self::Network(fault) => *fault == NetworkError::TooLarge,
            Self::Api { error, .. } => error.code == "57014",
            _ => false,
        }
    }

    /// Returns whether the same call may well succeed a little later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Network(fault) => *fault != NetworkError::TooLarge,
            Self::NotPostgrest { status } => *status >= 500 || *status == 429,
            Self::TokenRefused { .. } => true,
            Self::Api { status, error, .. } => {
                matches!(*status, 429 | 502 | 503 | 504) || code_passes(&error.code)
            }
            _ => false,
        }
    }
}

/// PGRST000–003: no connection or none in time; 08: the connection broke; 40001, 40P01, 55P03: lost against another
/// transaction; 53: out of memory, disk or connections, but not a limit that was set; 57P0x: the server restarts; 58: its
/// system failed; 25006: it takes no writes, for it is full or a copy takes its place.
fn code_passes(code: &str) -> bool {
    let classes = ["PGRST00", "08", "53", "57P0", "58"];
    matches!(code, "40001" | "40P01" | "55P03" | "25006")
        || (classes.iter().any(|class| code.starts_with(class)) && code != "53400")
}

/// Two seconds were seen not to be enough for the gateway's clock (<https://github.com/supabase/supabase/issues/50651>).
const CLOCKS_AGREE: Duration = Duration::from_secs(2);

impl Retryable for SupabaseError {
    fn retry(&self) -> RetryDecision {
        match self {
            Self::TokenRefused { .. } => RetryDecision::After(Some(CLOCKS_AGREE)),
            _ if self.is_passing() => RetryDecision::After(None),
            _ => RetryDecision::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::{damage::damaged, providers::Provider};

    fn classify(status: u16, body: &str) -> SupabaseError {
        SupabaseError::from_answer("jobs_claim", status, body.as_bytes(), false)
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
    #[case(
        401,
        r#"{"code":"PGRST303","message":"JWT issued at future","details":null,"hint":null}"#,
        false,
        true
    )]
    #[case(401, r#"{"code":"PGRST301","message":"JWSError JWSInvalidSignature"}"#, false, true)]
    #[case(401, r#"{"code":"PGRST302","message":"Anonymous access is disabled"}"#, true, false)]
    #[case(403, r#"{"code":"28P01","message":"password authentication failed"}"#, false, false)]
    #[case(402, r#"{"message":"Service for this project is restricted: exceed_egress_quota"}"#, true, false)]
    #[case(
        405,
        r#"{"code":"25006","message":"cannot execute INSERT in a read-only transaction"}"#,
        false,
        true
    )]
    #[case(500, r#"{"code":"55P03","message":"canceling statement due to lock timeout"}"#, false, true)]
    #[case(
        503,
        r#"{"code":"53100","message":"could not extend file: No space left on device"}"#,
        false,
        true
    )]
    #[case(500, r#"{"code":"53400","message":"configuration limit exceeded"}"#, false, false)]
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

    /// A legacy key is the token: what is wrong with it is ours to mend, except for the clocks of others.
    #[rstest]
    #[case("JWT expired", true)]
    #[case("JWSError JWSInvalidSignature", true)]
    #[case("JWT issued at future", false)]
    #[case("JWTIssuedAtFuture", false)]
    fn of_a_legacy_key(#[case] message: &str, #[case] bad: bool) {
        for code in ["PGRST301", "PGRST303"] {
            let body = format!(r#"{{"code":"{code}","message":"{message}"}}"#);
            let error = SupabaseError::from_answer("jobs_claim", 401, body.as_bytes(), true);
            assert_eq!((error.is_configuration(), error.is_passing()), (bad, !bad), "{error:?}");
        }
    }

    #[test]
    fn the_gateways_clock_is_waited_for() {
        let error = classify(401, r#"{"code":"PGRST303","message":"JWT issued at future"}"#);
        assert_eq!(error.retry(), RetryDecision::After(Some(CLOCKS_AGREE)));
        assert!(error.user_message().contains("la clé n’est pas en cause"), "{}", error.user_message());
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
