//! Tries every variable: missing, wrong, or written in the wrong place.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
};

use rstest::rstest;

use super::*;

/// Makes a JWT with this role; only the claims are looked at.
fn jwt(role: &str) -> String {
    use base64::Engine as _;
    let claims = format!(r#"{{"role":"{role}"}}"#);
    format!("eyJh.{}.x", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims))
}

fn sound() -> HashMap<&'static str, String> {
    HashMap::from([
        ("CRON_SECRET", "secret-value".to_owned()),
        ("SUPABASE_URL", "https://ref.supabase.co".to_owned()),
        ("SUPABASE_SECRET_KEY", "sb_secret_value".to_owned()),
        ("STRIPE_SECRET_KEY", "sk_live_value".to_owned()),
        ("SHOPIFY_CLIENT_ID", "client-value".to_owned()),
        ("SHOPIFY_CLIENT_SECRET", "shared-value".to_owned()),
        ("ENCRYPTION_KEY", "0123456789abcdef0123456789abcdef".to_owned()),
    ])
}

fn read(vars: &HashMap<&'static str, String>) -> Config {
    Config::read(&|name| vars.get(name).cloned())
}

/// Returns all faults of a configuration, as one text.
fn faults(vars: &HashMap<&'static str, String>) -> String {
    let config = read(vars);
    let parts = [config.required_by_all().err(), config.integrations.err()];
    parts.into_iter().flatten().map(|faults| faults.to_string()).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_sound_configuration_has_no_fault() {
    assert_eq!(faults(&sound()), "");
}

#[test]
fn everything_that_is_missing_is_named_at_once() {
    let faults = faults(&HashMap::new());
    for name in ["SUPABASE_URL", "SUPABASE_SECRET_KEY"] {
        assert!(faults.lines().next().unwrap().contains(name), "{name}: {faults}");
    }
    for name in ["STRIPE_SECRET_KEY", "SHOPIFY_CLIENT_ID", "SHOPIFY_CLIENT_SECRET", "ENCRYPTION_KEY"] {
        assert!(faults.lines().nth(1).unwrap().contains(name), "{name}: {faults}");
    }
}

#[rstest]
#[case("SUPABASE_URL", "not a url")]
#[case("SUPABASE_URL", "http://ref.supabase.co")]
#[case("SUPABASE_URL", "https://user:value@ref.supabase.co")]
#[case("SUPABASE_SECRET_KEY", "sb_publishable_value")]
#[case("SUPABASE_SECRET_KEY", "value")]
#[case("STRIPE_SECRET_KEY", "pk_live_value")]
#[case("ENCRYPTION_KEY", "value-too-short")]
#[case("SHOPIFY_API_BASE", "https://value.example")]
#[case("SHOPIFY_API_BASE", "http://value.example/{shop}")]
#[case("SHOPIFY_API_BASE", "https://{shop}\n.value.example")]
#[case("STRIPE_API_BASE", "value")]
#[case("SHOPIFY_EXCHANGE_PERMANENT_TOKENS", "value")]
#[case("JOB_CONCURRENCY", "0")]
#[case("JOB_BUDGET_SECONDS", "value")]
#[case("STRIPE_REQUESTS_PER_SECOND", "0")]
#[case("STRIPE_MIN_REQUESTS_PER_SECOND", "501")]
#[case("STRIPE_MIN_REQUESTS_PER_SECOND", "value")]
#[case("STRIPE_MAX_REQUESTS_PER_SECOND", "4")]
#[case("STRIPE_MAX_REQUESTS_PER_SECOND", "1001")]
#[case("REPLAY_MAX_DAYS", "-1")]
#[case("MARKETING_FROM_HOUR", "11")]
#[case("MARKETING_FROM_HOUR", "24")]
#[case("STRIPE_SECRET_KEY", "   ")]
#[case("OPERATOR_EMAIL", "value")]
#[case("OPERATOR_EMAIL", "Value <value@host.fr>")]
#[case("PING_URL_SYNC_INTEGRATIONS", "value")]
#[case("PING_URL_MARKETING_DAY3", "http://value.example/x")]
fn a_fault_is_named_and_its_value_is_not(#[case] name: &'static str, #[case] value: &str) {
    let mut vars = sound();
    vars.insert(name, value.to_owned());
    let faults = faults(&vars);
    assert!(faults.contains(name), "{faults}");
    assert!(!faults.contains("value"), "{faults}");
}

/// This is all that leaves in a header, an address or a form, and what callers send us.
#[rstest]
#[case("CRON_SECRET", "first\nvalue")]
#[case("CRON_SECRET", "valueé")]
#[case("SUPABASE_URL", "https://ref.sup\nabase.co/value")]
#[case("SUPABASE_SECRET_KEY", "sb_secret_a\nvalue")]
#[case("SUPABASE_SECRET_KEY", "sb_secret_a\u{7f}value")]
#[case("STRIPE_SECRET_KEY", "sk_live_a\r\nvalue")]
#[case("STRIPE_API_BASE", "https://stripe.example/\tvalue")]
#[case("SHOPIFY_CLIENT_ID", "a\nvalue")]
#[case("SHOPIFY_CLIENT_SECRET", "a\0value")]
#[case("SHOPIFY_API_BASE", "https://{shop}/\nvalue")]
#[case("PING_URL_MONTHLY_SYNC", "https://hc.example/a\nvalue")]
#[case("OPERATOR_EMAIL", "a@host.fr\nvalue@host.fr")]
fn what_cannot_be_sent_is_a_fault(#[case] name: &'static str, #[case] value: &str) {
    let mut vars = sound();
    vars.insert(name, value.to_owned());
    let faults = faults(&vars);
    assert!(faults.contains(name), "{faults}");
    assert!(!faults.contains("value"), "{faults}");
}

#[test]
fn an_anonymous_key_is_told_apart_before_the_first_request() {
    let mut vars = sound();
    vars.insert("SUPABASE_SECRET_KEY", jwt("anon"));
    assert!(faults(&vars).contains("anonyme"));
    vars.insert("SUPABASE_SECRET_KEY", jwt("service_role"));
    assert_eq!(faults(&vars), "");
}

#[test]
fn either_variable_may_hold_either_kind_of_key() {
    let mut vars = sound();
    let secret = vars.remove("SUPABASE_SECRET_KEY").unwrap();
    vars.insert("SUPABASE_SERVICE_ROLE_KEY", secret);
    let url = vars.remove("SUPABASE_URL").unwrap();
    vars.insert("NEXT_PUBLIC_SUPABASE_URL", url);
    assert_eq!(faults(&vars), "");
}

#[test]
fn white_space_around_a_value_is_not_part_of_it_and_blank_is_missing() {
    use secrecy::ExposeSecret;
    let mut vars = sound();
    vars.insert("CRON_SECRET", "secret-value\n".to_owned());
    assert_eq!(read(&vars).cron_secret.unwrap().expose_secret(), "secret-value");
    vars.insert("CRON_SECRET", " \n ".to_owned());
    assert!(read(&vars).cron_secret.is_none());
}

/// Returns every name that is asked for, whatever is set.
fn names() -> BTreeSet<String> {
    let asked = RefCell::new(BTreeSet::new());
    // Other names come up where one is missing, or a deployment is in production.
    for environment in [HashMap::new(), HashMap::from([("VERCEL_ENV", "production")])] {
        let _ = Config::read(&|name| {
            asked.borrow_mut().insert(name.to_owned());
            environment.get(name).map(|value| (*value).to_owned())
        });
    }
    asked.into_inner()
}

fn is_name(text: &str) -> bool {
    text.contains('_')
        && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Takes `NAME=` at the beginning of a line, commented out or not.
#[test]
fn the_example_names_every_variable_and_nothing_else() {
    let example = include_str!("../../../../.env.example");
    let lines = example.lines().map(|line| line.strip_prefix('#').unwrap_or(line));
    let named = lines.filter_map(|line| line.split_once('=')).map(|(name, _)| name.to_owned());
    let named: Vec<String> = named.filter(|name| is_name(name)).collect();
    let distinct: BTreeSet<String> = named.iter().cloned().collect();
    assert_eq!(distinct.len(), named.len(), "each once");
    assert_eq!(distinct, names());
}

/// The tables name a variable in their first column, or after the plan that it stands for.
#[test]
fn the_documentation_names_every_variable_and_nothing_else() {
    let documentation = include_str!("../../../../docs/configuration.md");
    let cell = |row: &'static str| {
        let mut cells = row.strip_prefix("| ")?.split(" | ");
        cells.find(|cell| cell.contains('`'))
    };
    let cells = documentation.lines().filter_map(cell);
    let named = cells.flat_map(|cell| cell.split('`')).filter(|text| is_name(text)).map(str::to_owned);
    assert_eq!(named.collect::<BTreeSet<_>>(), names());
}

#[test]
fn a_deployment_calls_itself_in_production_only() {
    let mut vars = sound();
    vars.insert("VERCEL_PROJECT_PRODUCTION_URL", "jobs.example".to_owned());
    assert_eq!(read(&vars).own_url, None);
    vars.insert("VERCEL_ENV", "preview".to_owned());
    assert_eq!(read(&vars).own_url, None);
    vars.insert("VERCEL_ENV", "production".to_owned());
    assert_eq!(read(&vars).own_url.unwrap().as_str(), "https://jobs.example/");
    vars.insert("JOBS_BASE_URL", "https://cron.example".to_owned());
    assert_eq!(read(&vars).own_url.unwrap().as_str(), "https://cron.example/");
    vars.insert("JOBS_BASE_URL", "cron.example".to_owned());
    assert!(faults(&vars).contains("JOBS_BASE_URL"));
}
