//! The environment, read once and checked: the only place that knows a variable's name.
//!
//! Every fault is found at once and named; no value is ever repeated. What everybody needs (the secret and
//! Supabase) and what single tasks need fail apart, so that a missing Stripe key leaves the reminders alone.
//! Blank counts as missing, and white space around a value (a pasted newline) is not part of it.

mod mail;
mod operator;

use std::{fmt, num::NonZeroU32, sync::Arc};

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use url::Url;

pub use self::{
    mail::{MailConfig, Prices},
    operator::OperatorConfig,
};
use crate::{
    crypto::keys::PurposeKey, crypto::tokens::TokenKey, http, providers::shopify::ApiBase, schedule::Settings,
};

/// Everything the environment says, sound or not.
pub struct Config {
    /// `CRON_SECRET`; `None` refuses everybody.
    pub cron_secret: Option<SecretString>,
    pub supabase: Result<SupabaseConfig, Faults>,
    pub tuning: Result<Tuning, Faults>,
    /// Its faults are among those of the tuning.
    pub operator: OperatorConfig,
    pub integrations: Result<IntegrationsConfig, Faults>,
    pub mail: Result<Arc<MailConfig>, Faults>,
    /// Which plan a price stands for.
    pub prices: Result<Prices, Faults>,
    /// Checks the links in mails.
    pub link_key: Result<PurposeKey, Faults>,
    /// Checks the mail service's webhooks.
    pub webhook_secret: Result<SecretString, Faults>,
    /// Where this deployment calls itself to go on; `None` outside production.
    pub own_url: Option<Url>,
    /// Debug builds only: another time than the real one, for tests and for trying a day with `vercel dev`.
    pub clock: Option<DateTime<Utc>>,
}

/// Where the database is and how to be let in.
#[derive(Clone)]
pub struct SupabaseConfig {
    /// Without a slash at the end.
    pub url: String,
    pub key: SupabaseKey,
}

/// The two kinds of service key: <https://supabase.com/docs/guides/api/api-keys>.
#[derive(Clone)]
pub enum SupabaseKey {
    /// `sb_secret_…`: in `apikey` only; as Bearer it is refused.
    Secret(SecretString),
    /// A `service_role` JWT: in `apikey` and as Bearer.
    LegacyJwt(SecretString),
}

impl SupabaseKey {
    /// The key itself.
    pub fn secret(&self) -> &SecretString {
        let (Self::Secret(key) | Self::LegacyJwt(key)) = self;
        key
    }
}

/// What the operator may tune.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Items worked on at once in each lane.
    pub concurrency: usize,
    /// Seconds in which new work may start.
    pub budget_seconds: u64,
    /// How far back `at=` reaches.
    pub replay_max_days: u16,
    pub schedule: Settings,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { concurrency: 32, budget_seconds: 270, replay_max_days: 35, schedule: Settings::default() }
    }
}

/// What the sync of integrations and the monthly sync need.
#[derive(Clone)]
pub struct IntegrationsConfig {
    pub stripe_secret_key: SecretString,
    pub shopify_client_id: String,
    pub shopify_client_secret: SecretString,
    pub token_key: Arc<TokenKey>,
    /// Without a slash at the end.
    pub stripe_api_base: String,
    /// Requests of one process.
    pub stripe_per_second: NonZeroU32,
    pub shopify_base: ApiBase,
}

/// All that is wrong with a part of the configuration.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, fault: impl Into<String>) {
        self.0.push(fault.into());
    }

    /// Several parts' faults together, each once: two parts may need the same variable.
    pub fn all<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut all = Vec::new();
        for fault in parts.into_iter().flat_map(|part| &part.0) {
            if !all.contains(fault) {
                all.push(fault.clone());
            }
        }
        Self(all)
    }

    /// One French phrase a fault, each naming its variable.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Configuration à corriger : {}", self.0.join(" ; "))
    }
}

impl std::error::Error for Faults {}

/// The variables of a process, trimmed; blank is missing.
struct Environment<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    fn get(&self, name: &str) -> Option<String> {
        let value = (self.0)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// A variable that must be there, under its own name or an older one.
    fn required(&self, name: &str, or: Option<&str>, faults: &mut Faults) -> Option<String> {
        let value = self.get(name).or_else(|| self.get(or?));
        if value.is_none() {
            let or = or.map(|or| format!(" (ou {or})")).unwrap_or_default();
            faults.add(format!("{name}{or} n’est pas définie"));
        }
        value
    }

    /// A variable that must be there and that leaves in a header, a URL or a form: a line break that was pasted
    /// along would stop each request before it is made, and what was never asked would look unknown.
    fn required_to_send(&self, name: &str, or: Option<&str>, faults: &mut Faults) -> Option<String> {
        self.required(name, or, faults).filter(|value| sendable(name, value, faults))
    }

    /// A whole number in `range`, `default` where the variable is missing.
    fn number(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<u64>,
        default: u64,
        faults: &mut Faults,
    ) -> u64 {
        let Some(text) = self.get(name) else { return default };
        match text.parse() {
            Ok(number) if range.contains(&number) => number,
            _ => {
                let (least, most) = range.into_inner();
                faults.add(format!("{name} doit être un entier de {least} à {most}"));
                default
            }
        }
    }

    fn url(name: &str, value: &str, faults: &mut Faults) -> Option<Url> {
        // `Url` drops a line break silently; letters of other alphabets it writes in ASCII.
        let plain = Some(value).filter(|value| !value.chars().any(char::is_control));
        let url = plain.and_then(|value| Url::parse(value).ok()).filter(http::is_safe);
        if url.is_none() {
            faults.add(format!("{name} doit être une adresse https://… complète"));
        }
        url
    }
}

/// Says whether a value can stand in a header as it is.
fn sendable(name: &str, value: &str, faults: &mut Faults) -> bool {
    let sendable = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if !sendable {
        faults.add(format!(
            "{name} contient un saut de ligne ou un caractère qui ne peut pas être envoyé ; collez la valeur à nouveau"
        ));
    }
    sendable
}

impl Config {
    /// Reads the environment of this process.
    pub fn from_env() -> Self {
        Self::read(&|name| std::env::var(name).ok())
    }

    /// Reads the variables that `get` knows.
    pub fn read(get: &dyn Fn(&str) -> Option<String>) -> Self {
        let env = Environment(get);
        let mut optional_faults = Faults::default();
        let own_url = own_url(&env, &mut optional_faults);
        let operator = operator::operator(&env, &mut optional_faults);
        let cron_secret = env.get("CRON_SECRET");
        if let Some(secret) = &cron_secret {
            sendable("CRON_SECRET", secret, &mut optional_faults);
        }
        Self {
            cron_secret: cron_secret.map(SecretString::from),
            supabase: supabase(&env),
            tuning: tuning(&env, optional_faults),
            operator,
            integrations: integrations(&env),
            mail: mail::mail(&env).map(Arc::new),
            prices: mail::prices(&env),
            link_key: mail::link_key(&env),
            webhook_secret: mail::webhook_secret(&env),
            own_url,
            clock: clock(&env),
        }
    }

    /// What every task needs, or all that is wrong: then also what single tasks would stumble over next.
    pub fn everybody(&self) -> Result<(&SupabaseConfig, Tuning), Faults> {
        match (&self.supabase, &self.tuning) {
            (Ok(supabase), Ok(tuning)) => Ok((supabase, *tuning)),
            (supabase, tuning) => {
                let faults = [
                    supabase.as_ref().err(),
                    tuning.as_ref().err(),
                    self.integrations.as_ref().err(),
                    self.mail.as_ref().err(),
                    self.prices.as_ref().err(),
                ];
                Err(Faults::all(faults.into_iter().flatten()))
            }
        }
    }
}

fn checked<T>(value: Option<T>, faults: Faults) -> Result<T, Faults> {
    match value {
        Some(value) if faults.0.is_empty() => Ok(value),
        _ => Err(faults),
    }
}

fn supabase(env: &Environment) -> Result<SupabaseConfig, Faults> {
    let mut faults = Faults::default();
    let url = env.required("SUPABASE_URL", Some("NEXT_PUBLIC_SUPABASE_URL"), &mut faults);
    let url = url.and_then(|url| Environment::url("SUPABASE_URL", &url, &mut faults));
    let key = env.required_to_send("SUPABASE_SECRET_KEY", Some("SUPABASE_SERVICE_ROLE_KEY"), &mut faults);
    let key = key.and_then(|key| supabase_key(key, &mut faults));
    let parts = url.zip(key).map(|(url, key)| SupabaseConfig {
        url: url.as_str().trim_end_matches('/').trim_end_matches("/rest/v1").to_owned(),
        key,
    });
    checked(parts, faults)
}

/// Tells the kinds apart before the first request: under row-level security the wrong one would not fail,
/// it would see an empty database.
fn supabase_key(key: String, faults: &mut Faults) -> Option<SupabaseKey> {
    const NAMES: &str = "SUPABASE_SECRET_KEY (ou SUPABASE_SERVICE_ROLE_KEY)";
    if key.starts_with("sb_secret_") {
        return Some(SupabaseKey::Secret(key.into()));
    }
    if key.starts_with("sb_publishable_") {
        faults.add(format!("{NAMES} contient une clé publique (sb_publishable_…) ; il faut la clé secrète"));
        return None;
    }
    match jwt_role(&key).as_deref() {
        Some("service_role") => Some(SupabaseKey::LegacyJwt(key.into())),
        Some(_) => {
            faults.add(format!("{NAMES} contient une clé anonyme ; il faut la clé secrète ou service_role"));
            None
        }
        None => {
            faults.add(format!("{NAMES} n’est ni une clé sb_secret_… ni un jeton service_role"));
            None
        }
    }
}

/// The `role` claim of a JWT. Only tells kinds of key apart: Supabase checks the signature.
fn jwt_role(token: &str) -> Option<String> {
    use base64::Engine as _;
    let claims = token.starts_with("eyJ").then(|| token.split('.').nth(1))??;
    let claims =
        base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    Some(claims.get("role")?.as_str()?.to_owned())
}

fn tuning(env: &Environment, mut faults: Faults) -> Result<Tuning, Faults> {
    let concurrency = env.number("JOB_CONCURRENCY", 1..=256, 32, &mut faults);
    let budget_seconds = env.number("JOB_BUDGET_SECONDS", 1..=270, 270, &mut faults);
    let replay_max_days = env.number("REPLAY_MAX_DAYS", 0..=366, 35, &mut faults);
    let from_hour = env.number("MARKETING_FROM_HOUR", 0..=10, 7, &mut faults);
    let tuning = Tuning {
        concurrency: usize::try_from(concurrency).unwrap_or(32),
        budget_seconds,
        replay_max_days: u16::try_from(replay_max_days).unwrap_or(35),
        schedule: Settings::new(u8::try_from(from_hour).unwrap_or(7)).unwrap_or_default(),
    };
    checked(Some(tuning), faults)
}

fn integrations(env: &Environment) -> Result<IntegrationsConfig, Faults> {
    let mut faults = Faults::default();
    let stripe = env.required_to_send("STRIPE_SECRET_KEY", None, &mut faults);
    if stripe.as_ref().is_some_and(|key| !(key.starts_with("sk_") || key.starts_with("rk_"))) {
        faults.add("STRIPE_SECRET_KEY doit commencer par sk_ ou rk_");
    }
    let client_id = env.required_to_send("SHOPIFY_CLIENT_ID", None, &mut faults);
    let client_secret = env.required_to_send("SHOPIFY_CLIENT_SECRET", None, &mut faults);
    let key = env.required("ENCRYPTION_KEY", None, &mut faults).and_then(|key| {
        let key = TokenKey::new(&key.into());
        if key.is_err() {
            faults.add("ENCRYPTION_KEY doit faire exactement 32 octets");
        }
        key.ok()
    });
    let stripe_per_second = env.number("STRIPE_REQUESTS_PER_SECOND", 1..=1000, 20, &mut faults);
    let stripe_base = env.get("STRIPE_API_BASE").unwrap_or_else(|| "https://api.stripe.com".to_owned());
    let stripe_base = Environment::url("STRIPE_API_BASE", &stripe_base, &mut faults);
    let shopify_base = match env.get("SHOPIFY_API_BASE") {
        None => Some(ApiBase::default()),
        Some(template) => {
            let base = template.parse::<ApiBase>();
            if base.is_err() {
                faults.add("SHOPIFY_API_BASE doit être une adresse https://… complète contenant {shop}");
            }
            base.ok()
        }
    };
    let parts = (|| {
        Some(IntegrationsConfig {
            stripe_secret_key: SecretString::from(stripe?),
            shopify_client_id: client_id?,
            shopify_client_secret: SecretString::from(client_secret?),
            token_key: Arc::new(key?),
            stripe_api_base: stripe_base?.as_str().trim_end_matches('/').to_owned(),
            stripe_per_second: NonZeroU32::new(u32::try_from(stripe_per_second).ok()?)?,
            shopify_base: shopify_base?,
        })
    })();
    checked(parts, faults)
}

/// `JOBS_NOW`, an instant as RFC 3339. A release build, which is what is deployed, knows nothing of it.
fn clock(env: &Environment) -> Option<DateTime<Utc>> {
    if cfg!(debug_assertions) { env.get("JOBS_NOW")?.parse().ok() } else { None }
}

/// The deployment's own address, in production only: the Bearer secret goes nowhere else.
fn own_url(env: &Environment, faults: &mut Faults) -> Option<Url> {
    if env.get("VERCEL_ENV").as_deref() != Some("production") {
        return None;
    }
    let address = env
        .get("JOBS_BASE_URL")
        .or_else(|| env.get("VERCEL_PROJECT_PRODUCTION_URL").map(|host| format!("https://{host}")))?;
    Environment::url("JOBS_BASE_URL", &address, faults)
}

impl fmt::Debug for SupabaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Secret(_) => "sb_secret",
            Self::LegacyJwt(_) => "service_role",
        };
        f.write_str(kind)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        collections::{BTreeSet, HashMap},
    };

    use rstest::rstest;

    use super::*;

    /// A JWT with this role; only the claims are looked at.
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

    /// All faults of a configuration, as one text.
    fn faults(vars: &HashMap<&'static str, String>) -> String {
        let config = read(vars);
        let parts = [config.everybody().err(), config.integrations.err()];
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
    #[case("JOB_CONCURRENCY", "0")]
    #[case("JOB_BUDGET_SECONDS", "value")]
    #[case("STRIPE_REQUESTS_PER_SECOND", "0")]
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

    /// All that leaves in a header, an address or a form, and what callers send us.
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

    /// Every name that is asked for, whatever is set.
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

    /// `NAME=` at the beginning of a line, commented out or not.
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
}
