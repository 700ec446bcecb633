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

/// Sets every variable that there is, to something sound.
fn all_sound() -> HashMap<&'static str, String> {
    let mut vars = sound();
    let more = [
        ("RESEND_API_KEY", "re_value"),
        ("RESEND_BASE_URL", "https://resend.example"),
        ("RESEND_RATE_LIMIT", "9"),
        ("RESEND_WEBHOOK_SECRET", "whsec_value"),
        ("COMPANY_FROM_EMAIL", "value@host.fr"),
        ("SENDER_IDENTITY", "Value SAS"),
        ("NEXT_PUBLIC_BASE_URL", "https://app.example"),
        ("JOBS_BASE_URL", "https://jobs.example"),
        ("MARKETING_PROMO_CODE", "value"),
        ("MARKETING_PROMO_LABEL", "value"),
        ("STRIPE_PRICE_PRO", "price_pro"),
        ("STRIPE_PRICE_PREMIUM", "price_premium"),
        ("STRIPE_PRICE_PRO_YEARLY", "price_pro_y"),
        ("STRIPE_PRICE_PREMIUM_YEARLY", "price_premium_y"),
        ("NEXT_PUBLIC_STRIPE_PRICE_PRO", "price_pro_n"),
        ("NEXT_PUBLIC_STRIPE_PRICE_PREMIUM", "price_premium_n"),
        ("NEXT_PUBLIC_STRIPE_PRICE_PRO_YEARLY", "price_pro_ny"),
        ("NEXT_PUBLIC_STRIPE_PRICE_PREMIUM_YEARLY", "price_premium_ny"),
        ("STRIPE_API_BASE", "https://stripe.example"),
        ("SHOPIFY_API_BASE", "https://{shop}/value"),
        ("SHOPIFY_EXCHANGE_PERMANENT_TOKENS", "true"),
        ("STRIPE_REQUESTS_PER_SECOND", "20"),
        ("STRIPE_MIN_REQUESTS_PER_SECOND", "5"),
        ("STRIPE_MAX_REQUESTS_PER_SECOND", "500"),
        ("JOB_CONCURRENCY", "32"),
        ("JOB_BUDGET_SECONDS", "270"),
        ("REPLAY_MAX_DAYS", "35"),
        ("MARKETING_FROM_HOUR", "7"),
        ("OPERATOR_EMAIL", "value@host.fr"),
        ("DEPLOYMENT_FILE", "vercel.json"),
        ("PING_URL_SYNC_INTEGRATIONS", "https://hc.example/1"),
        ("PING_URL_MONTHLY_SYNC", "https://hc.example/2"),
        ("PING_URL_MARKETING_DAY3", "https://hc.example/3"),
        ("PING_URL_MONTHLY_REMINDERS", "https://hc.example/4"),
        ("PING_URL_CHECK_THRESHOLDS", "https://hc.example/5"),
        ("VERCEL_ENV", "production"),
    ];
    vars.extend(more.map(|(name, value)| (name, value.to_owned())));
    vars
}

/// Returns the faults of every part.
fn all_faults(vars: &HashMap<&'static str, String>) -> ConfigFaults {
    let config = read(vars);
    let parts = [
        config.supabase.err(),
        config.tuning.err(),
        config.integrations.err(),
        config.mail.err(),
        config.prices.err(),
        config.link_keys.err(),
        config.webhook_secret.err(),
    ];
    ConfigFaults::all(parts.iter().flatten())
}

#[test]
fn every_variable_in_every_wrong_form_is_named_and_never_repeated() {
    let sound = all_sound();
    assert!(all_faults(&sound).is_empty(), "{}", all_faults(&sound));
    let untried: Vec<String> =
        names().into_iter().filter(|name| !sound.contains_key(name.as_str())).collect();
    assert_eq!(
        untried,
        [
            "JOBS_NOW",
            "NEXT_PUBLIC_SUPABASE_URL",
            "SUPABASE_SERVICE_ROLE_KEY",
            "VERCEL_PROJECT_PRODUCTION_URL"
        ],
        "the platform's, a test's, and other names of what is tried"
    );
    for (name, value) in sound.iter().filter(|(name, _)| **name != "VERCEL_ENV") {
        let is_list = *name == "SENDER_IDENTITY";
        let wrong = [
            (format!("\"{value}\""), *name != "CRON_SECRET"),
            (format!("'{value}'"), *name != "CRON_SECRET"),
            (format!("{value}\n{value}"), !is_list),
            (format!("{value}\r\n{name}={value}"), !is_list),
            (format!("{value}\u{7}{value}"), true),
            (format!("{value}\0"), true),
            (format!("{value}{}", "x".repeat(17_000)), true),
        ];
        for (form, is_fault) in wrong {
            let vars = sound.clone().into_iter().chain([(*name, form.clone())]).collect();
            let faults = all_faults(&vars);
            assert_eq!(
                faults.iter().any(|fault| fault.contains(name)),
                is_fault,
                "{name} {form:.60?}: {faults}"
            );
            assert!(faults.iter().all(|fault| fault.contains(name)), "only what is wrong is named: {faults}");
            assert!(!faults.to_string().contains(&form), "{name}");
        }
    }
}

/// What a script writes for nothing is nothing: no secret is the word `undefined`, no mail is signed with it.
#[test]
fn undefined_is_missing() {
    use secrecy::ExposeSecret;
    let sound = all_sound();
    for name in sound.keys().filter(|name| **name != "RESEND_RATE_LIMIT") {
        let without: HashMap<_, _> = sound.clone().into_iter().filter(|(other, _)| other != name).collect();
        for nothing in ["undefined", "null", " undefined\n", ""] {
            let vars = without.clone().into_iter().chain([(*name, nothing.to_owned())]).collect();
            assert_eq!(all_faults(&vars), all_faults(&without), "{name}");
            let secret = read(&vars).cron_secret.map(|secret| secret.expose_secret().to_owned());
            assert_eq!(secret.as_deref(), (*name != "CRON_SECRET").then_some("secret-value"));
        }
    }
}

/// The crate that sends reads it untrimmed, and panics at each mail where it is no number.
#[rstest]
#[case("")]
#[case("9\n")]
#[case(" 9")]
#[case("undefined")]
#[case("0")]
fn a_rate_limit_that_the_crate_cannot_read_is_a_fault(#[case] value: &str) {
    let mut vars = all_sound();
    vars.insert("RESEND_RATE_LIMIT", value.to_owned());
    assert!(all_faults(&vars).to_string().contains("RESEND_RATE_LIMIT"));
}

/// Paths are put behind these: nothing may stand in between.
#[test]
fn an_address_for_paths_has_none_of_its_own() {
    for name in
        ["SUPABASE_URL", "STRIPE_API_BASE", "RESEND_BASE_URL", "NEXT_PUBLIC_BASE_URL", "JOBS_BASE_URL"]
    {
        for more in ["?value", "/?value=1", "#value"] {
            let mut vars = all_sound();
            vars.entry(name).and_modify(|address| address.push_str(more));
            let faults = all_faults(&vars).to_string();
            assert!(faults.contains(name) && !faults.contains("value"), "{faults}");
        }
    }
    let mut vars = all_sound();
    vars.insert("JOBS_BASE_URL", "https://jobs.example/value".to_owned());
    let faults = all_faults(&vars).to_string();
    assert!(faults.contains("JOBS_BASE_URL") && !faults.contains("value"), "{faults}");
    vars.insert("JOBS_BASE_URL", "https://jobs.example/".to_owned());
    assert!(all_faults(&vars).is_empty());
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
