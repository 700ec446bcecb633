//! Who is let in, and what may be asked.

use proptest::prelude::*;
use rstest::rstest;

use super::*;

const NOW: &str = "2026-11-22T10:00:00Z";
const SECRET: &str = "s3cret-value";

fn status(
    route: Route,
    method: &str,
    query: &str,
    authorization: Option<&str>,
    expected: Option<&str>,
) -> u16 {
    let expected = expected.map(|secret| SecretString::from(secret.to_owned()));
    let incoming = Incoming { method, query, authorization };
    match admit(route, &incoming, expected.as_ref(), 35, NOW.parse().unwrap()) {
        Admission::Refuse(answer) => answer.status(),
        Admission::Run(_) => 0,
        Admission::Drain => 202,
    }
}

#[rstest]
#[case::right(Some("Bearer s3cret-value"), "", 0)]
#[case::scheme_in_any_case(Some("bearer s3cret-value"), "", 0)]
#[case::query(None, "secret=s3cret-value", 0)]
#[case::none(None, "", 401)]
#[case::wrong(Some("Bearer other"), "", 401)]
#[case::empty(Some("Bearer "), "", 401)]
#[case::blank(Some("Bearer    "), "", 401)]
#[case::no_scheme(Some("s3cret-value"), "", 401)]
#[case::prefix(Some("Bearer s3cret"), "", 401)]
#[case::longer(Some("Bearer s3cret-value2"), "", 401)]
#[case::newline(None, "secret=s3cret-value%0A", 401)]
#[case::empty_query(None, "secret=", 401)]
#[case::header_decides(Some("Bearer other"), "secret=s3cret-value", 401)]
#[case::short_header(Some("B"), "", 401)]
#[case::not_ascii(Some("Béarer s3cret-value"), "", 401)]
fn the_secret(#[case] authorization: Option<&str>, #[case] query: &str, #[case] expected: u16) {
    assert_eq!(status(Route::DailyOrchestrator, "GET", query, authorization, Some(SECRET)), expected);
    assert_eq!(status(Route::SyncIntegrations, "POST", query, authorization, Some(SECRET)), expected);
}

/// A secret of Base64, copied into an address as it is: refused, and told why; to nobody else.
#[rstest]
#[case("secret=ab+c/d==", true)]
#[case("secret=ab%2Bc/d==", false)]
#[case("secret=ab+c/x==", false)]
fn a_plus_in_an_address_is_explained(#[case] query: &str, #[case] explained: bool) {
    let expected = SecretString::from("ab+c/d==".to_owned());
    let incoming = Incoming { method: "GET", query, authorization: None };
    match admit(Route::DailyOrchestrator, &incoming, Some(&expected), 35, NOW.parse().unwrap()) {
        Admission::Refuse(answer) => {
            assert_eq!(answer.status(), 401);
            assert_eq!(answer.complaint().is_some_and(|told| told.contains("%2B")), explained);
        }
        Admission::Run(_) => assert_eq!(query, "secret=ab%2Bc/d=="),
        Admission::Drain => panic!("not drained"),
    }
}

#[test]
fn an_unset_secret_refuses_everybody() {
    for (query, authorization) in [("", Some("Bearer ")), ("secret=", None), ("", Some("Bearer undefined"))] {
        assert_eq!(status(Route::DailyOrchestrator, "GET", query, authorization, None), 401);
    }
}

#[rstest]
#[case::instructions(Route::MonthlySync, "GET", "", None, 200)]
#[case::cron_calls_a_manual_route(Route::MonthlySync, "GET", "", Some("Bearer s3cret-value"), 0)]
#[case::wrong_bearer(Route::MonthlySync, "GET", "", Some("Bearer x"), 401)]
#[case::a_link_never_runs(Route::MonthlySync, "GET", "secret=s3cret-value", None, 405)]
#[case::a_link_never_runs_with_header(
    Route::MonthlySync,
    "GET",
    "secret=s3cret-value",
    Some("Bearer s3cret-value"),
    405
)]
#[case::post_a_cron(Route::DailyOrchestrator, "POST", "", Some("Bearer s3cret-value"), 405)]
#[case::head(Route::DailyOrchestrator, "HEAD", "", Some("Bearer s3cret-value"), 204)]
#[case::options(Route::SyncIntegrations, "OPTIONS", "", Some("Bearer s3cret-value"), 204)]
#[case::delete(Route::SyncIntegrations, "DELETE", "", Some("Bearer s3cret-value"), 405)]
#[case::drain(Route::DrainQueue, "POST", "", Some("Bearer s3cret-value"), 202)]
#[case::drain_by_query(Route::DrainQueue, "POST", "secret=s3cret-value", None, 401)]
#[case::drain_by_link(Route::DrainQueue, "GET", "", Some("Bearer s3cret-value"), 405)]
fn methods(
    #[case] route: Route,
    #[case] method: &str,
    #[case] query: &str,
    #[case] authorization: Option<&str>,
    #[case] expected: u16,
) {
    assert_eq!(status(route, method, query, authorization, Some(SECRET)), expected);
}

fn complaint(route: Route, query: &str) -> String {
    let secret = SecretString::from(SECRET.to_owned());
    let authorization = Some("Bearer s3cret-value");
    let incoming = Incoming { method: "POST", query, authorization };
    match admit(route, &incoming, Some(&secret), 35, NOW.parse().unwrap()) {
        Admission::Refuse(answer) => {
            assert_eq!(answer.status(), 400, "{query}");
            answer.body().to_owned()
        }
        other => panic!("{query}: {other:?}"),
    }
}

#[rstest]
#[case("secrets=x", "secrets")]
#[case("dry_run=oui", "dry_run")]
#[case("dry_run", "dry_run")]
#[case("month=2026-13", "month")]
#[case("month=2026-1", "month")]
#[case("month=0206-10", "month")]
#[case("month=0000-01", "month")]
#[case("month=1969-12", "month")]
#[case("dry_run=true&month=2100-01", "month")]
#[case("month=2027-01", "month")]
#[case("at=hier", "at")]
#[case("at=2026-11-23T00:00:00Z", "at")]
#[case("at=2026-01-01T00:00:00Z", "at")]
#[case("user_id=42", "user_id")]
#[case("force=true&force=true", "force")]
#[case("days=3", "days")]
#[case("month=", "month")]
fn a_bad_parameter_is_named(#[case] query: &str, #[case] name: &str) {
    assert!(complaint(Route::MonthlySync, query).contains(name), "{query}");
}

#[test]
fn a_name_is_answered_escaped_and_cut() {
    let answer = complaint(Route::SyncIntegrations, &format!("%22%3Cb%3E{}=1", "x".repeat(500)));
    assert!(answer.len() < 300 && answer.contains("\\\"<b>"), "{answer}");
}

/// Queries that an attacker, a typing error or a later version may send.
fn queries() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        3 => prop::sample::select(vec!["dry_run", "at", "user_id", "force", "month", "days", "secret"]).prop_map(str::to_owned),
        1 => "[a-zA-Z_%0-9\\[\\]]{0,12}",
        1 => "\\PC{0,6}",
    ];
    let value = prop_oneof![
        3 => prop::sample::select(vec![
            "true", "false", "2026-10", "2026-11-22T09:00:00Z", "2026-11-22T09:00:00%2B01:00", "7",
            "5f0c0e52-8a4e-4c4b-9b0c-2f6d1a7e0001", "-1", "99999999999999999999", "9999-12", "0000-01",
            "%2B262142-12-31T23:59:59Z", "-262143-01-01T00:00:00Z",
        ]).prop_map(str::to_owned),
        1 => "[0-9T:Z%-]{0,24}",
        1 => "\\PC{0,12}",
    ];
    let pair = (name, value).prop_map(|(name, value)| format!("{name}={value}"));
    prop_oneof![
        4 => prop::collection::vec(pair, 0..4).prop_map(|pairs| pairs.join("&")),
        1 => "\\PC{0,60}",
    ]
}

proptest! {
    /// Nothing runs that holds a parameter its route does not know, or one twice; and nothing without the secret.
    #[test]
    fn no_query_panics_or_runs_unknown(
        route in prop::sample::select(Route::ALL.to_vec()),
        method in prop::sample::select(vec!["GET", "POST", "PUT", "HEAD", "BREW"]),
        query in queries(),
        authorization in prop_oneof![Just(Some("Bearer s3cret-value".to_owned())), prop::option::of("\\PC{0,24}")],
    ) {
        let secret = SecretString::from(SECRET.to_owned());
        let incoming = Incoming { method, query: &query, authorization: authorization.as_deref() };
        let admission = admit(route, &incoming, Some(&secret), 35, NOW.parse().unwrap());
        let pairs: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
        let known = |name: &str| route.parameters().iter().any(|parameter| parameter.name() == name);
        match admission {
            Admission::Refuse(answer) => prop_assert!([200, 204, 400, 401, 405].contains(&answer.status())),
            Admission::Drain => prop_assert!(pairs.is_empty() && route.kind() == Kind::Drain),
            Admission::Run(call) => {
                let names: Vec<_> = pairs.iter().map(|(name, _)| name.as_ref()).filter(|name| *name != "secret").collect();
                prop_assert!(names.iter().all(|name| known(name)), "{}", query);
                let distinct: std::collections::BTreeSet<_> = names.iter().collect();
                prop_assert_eq!(distinct.len(), names.len());
                prop_assert!(authorization.as_deref() == Some("Bearer s3cret-value") || query.contains(SECRET));
                prop_assert!(call.dry_run || call.at <= NOW.parse::<DateTime<Utc>>().unwrap());
            }
        }
    }
}

#[test]
fn an_operator_means_30_days_and_a_cron_the_last_success() {
    let run = |method: &str| {
        let secret = SecretString::from(SECRET.to_owned());
        let incoming = Incoming { method, query: "", authorization: Some("Bearer s3cret-value") };
        match admit(Route::SyncIntegrations, &incoming, Some(&secret), 35, NOW.parse().unwrap()) {
            Admission::Run(call) => (call.days.map(Days::get), call.claims_slot()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(run("POST"), (Some(30), false));
    assert_eq!(run("GET"), (None, true));
}
