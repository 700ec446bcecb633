//! Reads what the mails need of the environment.

use secrecy::SecretString;
use url::Url;

use super::environment::{Environment, checked};
use crate::{
    config_faults::ConfigFaults,
    email::{LinkKeys, MailConfig, Prices, Promo},
};

pub(super) fn mail(env: &Environment) -> Result<MailConfig, ConfigFaults> {
    let mut faults = ConfigFaults::default();
    let api_key = env.required_to_send("RESEND_API_KEY", None, &mut faults);
    let base = env.get("RESEND_BASE_URL").unwrap_or_else(|| "https://api.resend.com".to_owned());
    let api_base = Environment::base("RESEND_BASE_URL", &base, &mut faults);
    let from = env.required("COMPANY_FROM_EMAIL", None, &mut faults);
    if from.as_deref().is_some_and(|from| !is_sender(from)) {
        faults.add("COMPANY_FROM_EMAIL doit être une adresse, ou Nom <adresse>");
    }
    let app = env.get("NEXT_PUBLIC_BASE_URL").unwrap_or_else(|| "https://comptalyze.com".to_owned());
    let app = Environment::base("NEXT_PUBLIC_BASE_URL", &app, &mut faults);
    let jobs = env
        .get("JOBS_BASE_URL")
        .or_else(|| env.get("VERCEL_PROJECT_PRODUCTION_URL").map(|host| format!("https://{host}")));
    if jobs.is_none() {
        faults.add("JOBS_BASE_URL n’est pas définie (l’adresse de ce déploiement)");
    }
    let jobs = jobs.and_then(|url| own_address(&url, &mut faults));
    let sender_identity = env.required("SENDER_IDENTITY", None, &mut faults);
    let promo = ["MARKETING_PROMO_CODE", "MARKETING_PROMO_LABEL"];
    let promo = match promo.map(|name| env.get(name).map(|_| one_line(env, name, &mut faults))) {
        [Some(code), Some(label)] => code.zip(label).map(|(code, label)| Promo { code, label }),
        [None, None] => None,
        _ => {
            faults.add("MARKETING_PROMO_CODE et MARKETING_PROMO_LABEL vont ensemble");
            None
        }
    };
    // The crate that sends reads it by itself, as it is written, and panics where that is no such number.
    if (env.0)("RESEND_RATE_LIMIT").is_some_and(|burst| !burst.parse::<u32>().is_ok_and(|burst| burst > 0)) {
        faults.add("RESEND_RATE_LIMIT doit être un entier à partir de 1, sans espace ni saut de ligne, ou ne pas exister");
    }
    let key = env.required("ENCRYPTION_KEY", None, &mut faults);
    if key.as_ref().is_some_and(|key| key.len() != 32) {
        faults.add("ENCRYPTION_KEY doit faire exactement 32 octets");
    }
    let parts = (|| {
        Some(MailConfig {
            api_key: SecretString::from(api_key?),
            api_base: api_base?,
            from: from?,
            app_url: without_slash(&app?),
            jobs_url: without_slash(&jobs?),
            sender_identity: sender_identity?,
            promo,
            link_keys: LinkKeys::derive(&SecretString::from(key?)),
        })
    })();
    checked(parts, faults)
}

/// Returns the keys that sign links, by themselves: a link must work where a mail could not be sent.
pub(super) fn link_keys(env: &Environment) -> Result<LinkKeys, ConfigFaults> {
    let mut faults = ConfigFaults::default();
    let key = env.required("ENCRYPTION_KEY", None, &mut faults);
    if key.as_ref().is_some_and(|key| key.len() != 32) {
        faults.add("ENCRYPTION_KEY doit faire exactement 32 octets");
    }
    checked(key.map(|key| LinkKeys::derive(&SecretString::from(key))), faults)
}

/// Returns the secret of the webhook, as Resend shows it: `whsec_…`.
pub(super) fn webhook_secret(env: &Environment) -> Result<SecretString, ConfigFaults> {
    let mut faults = ConfigFaults::default();
    let secret = env.required_to_send("RESEND_WEBHOOK_SECRET", None, &mut faults);
    if secret.as_ref().is_some_and(|secret| !secret.starts_with("whsec_")) {
        faults.add("RESEND_WEBHOOK_SECRET doit commencer par whsec_");
    }
    checked(secret.map(SecretString::from), faults)
}

/// Returns the prices of both plans, under all of their names.
pub(super) fn prices(env: &Environment) -> Result<Prices, ConfigFaults> {
    let mut faults = ConfigFaults::default();
    // What the web application writes for tests.
    let mut prices = Prices::from([("pro_test".to_owned(), "pro"), ("premium_test".to_owned(), "premium")]);
    for (plan, name) in [("pro", "STRIPE_PRICE_PRO"), ("premium", "STRIPE_PRICE_PREMIUM")] {
        let names = ["", "_YEARLY"].map(|yearly| format!("{name}{yearly}"));
        let names = names.iter().flat_map(|name| [name.clone(), format!("NEXT_PUBLIC_{name}")]);
        let names: Vec<String> = names.filter(|name| env.get(name).is_some()).collect();
        let values: Vec<String> = names.iter().filter_map(|name| one_line(env, name, &mut faults)).collect();
        if names.is_empty() {
            faults.add(format!("{name} (ou NEXT_PUBLIC_{name}, ou leur forme _YEARLY) n’est pas définie"));
        }
        for value in values {
            if prices.insert(value, plan).is_some_and(|known| known != plan) {
                faults.add(format!("{name} contient aussi un tarif de l’autre offre"));
            }
        }
    }
    checked(Some(prices), faults)
}

/// Reads an optional variable that stands within a line, or in an identifier.
fn one_line(env: &Environment, name: &str, faults: &mut ConfigFaults) -> Option<String> {
    let value = env.whole(name, faults)?;
    let is_one = !value.contains(['\n', '\r']);
    if !is_one {
        faults.add(format!("{name} contient un saut de ligne ; collez la valeur à nouveau"));
    }
    is_one.then_some(value)
}

/// Reads this deployment's own address, `JOBS_BASE_URL`. It has no path: routes begin at its root, and the secret goes to
/// no other address of that host.
pub(super) fn own_address(value: &str, faults: &mut ConfigFaults) -> Option<Url> {
    let url = Environment::base("JOBS_BASE_URL", value, faults)?;
    let is_root = url.path() == "/";
    if !is_root {
        faults.add("JOBS_BASE_URL doit être une adresse https://… sans chemin");
    }
    is_root.then_some(url)
}

fn without_slash(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

/// Returns whether the text is an address, or a name and an address in angle brackets, on one line.
pub(super) fn is_sender(text: &str) -> bool {
    let address = match text.split_once('<') {
        Some((_, rest)) => rest.strip_suffix('>').unwrap_or_default(),
        None => text,
    };
    let sound =
        |part: &str| !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || "<>@,;".contains(c));
    let whole =
        address.split_once('@').is_some_and(|(name, host)| sound(name) && sound(host) && host.contains('.'));
    whole && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rstest::rstest;

    use super::*;

    type Vars = HashMap<String, String>;

    fn sound() -> Vars {
        [
            ("RESEND_API_KEY", "re_value"),
            ("COMPANY_FROM_EMAIL", "Comptalyze <bonjour@comptalyze.com>"),
            ("JOBS_BASE_URL", "https://jobs.example.fr/"),
            ("SENDER_IDENTITY", "Comptalyze SAS"),
            ("ENCRYPTION_KEY", "0123456789abcdef0123456789abcdef"),
            ("STRIPE_PRICE_PRO", "price_pro"),
            ("NEXT_PUBLIC_STRIPE_PRICE_PREMIUM_YEARLY", "price_premium_yearly"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    fn faults(vars: &Vars) -> String {
        let get = |name: &str| vars.get(name).cloned();
        let env = Environment(&get);
        let mail = mail(&env).err().unwrap_or_default();
        let prices = prices(&env).err().unwrap_or_default();
        mail.iter().chain(prices.iter()).collect::<Vec<_>>().join(" ; ")
    }

    #[test]
    fn a_sound_configuration_has_no_fault() {
        assert_eq!(faults(&sound()), "");
        let vars = sound();
        let get = |name: &str| vars.get(name).cloned();
        let config = mail(&Environment(&get)).unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(
            (config.app_url.as_str(), config.jobs_url.as_str()),
            ("https://comptalyze.com", "https://jobs.example.fr")
        );
        let prices = prices(&Environment(&get)).unwrap();
        assert_eq!(prices["price_premium_yearly"], "premium");
        assert_eq!(prices["pro_test"], "pro");
    }

    #[test]
    fn everything_that_is_missing_is_named_at_once() {
        let faults = faults(&Vars::new());
        for name in [
            "RESEND_API_KEY",
            "COMPANY_FROM_EMAIL",
            "JOBS_BASE_URL",
            "SENDER_IDENTITY",
            "ENCRYPTION_KEY",
            "STRIPE_PRICE_PRO",
            "STRIPE_PRICE_PREMIUM",
        ] {
            assert!(faults.contains(name), "{name}: {faults}");
        }
    }

    #[rstest]
    #[case("COMPANY_FROM_EMAIL", "value")]
    #[case("COMPANY_FROM_EMAIL", "value@host")]
    #[case("COMPANY_FROM_EMAIL", "Value <value@host.fr")]
    #[case("COMPANY_FROM_EMAIL", "a@value.fr,b@value.fr")]
    #[case("COMPANY_FROM_EMAIL", "Value\n<value@host.fr>")]
    #[case("RESEND_API_KEY", "re_a\nvalue")]
    #[case("RESEND_BASE_URL", "https://mail.example/\nvalue")]
    #[case("JOBS_BASE_URL", "https://jobs.example/\nvalue")]
    #[case("NEXT_PUBLIC_BASE_URL", "https://app.example/\nvalue")]
    #[case("JOBS_BASE_URL", "value")]
    #[case("NEXT_PUBLIC_BASE_URL", "http://value.example")]
    #[case("RESEND_BASE_URL", "value")]
    #[case("RESEND_RATE_LIMIT", "value")]
    #[case("RESEND_RATE_LIMIT", "0")]
    #[case("ENCRYPTION_KEY", "value")]
    #[case("MARKETING_PROMO_CODE", "value")]
    #[case("STRIPE_PRICE_PREMIUM", "price_pro")]
    fn a_fault_is_named_and_its_value_is_not(#[case] name: &str, #[case] value: &str) {
        let mut vars = sound();
        vars.insert(name.to_owned(), value.to_owned());
        let faults = faults(&vars);
        assert!(faults.contains(name), "{faults}");
        assert!(!faults.contains("value") && !faults.contains("price_"), "{faults}");
    }

    #[test]
    fn a_webhook_secret_with_a_line_break_is_a_fault() {
        let get = |name: &str| (name == "RESEND_WEBHOOK_SECRET").then(|| "whsec_a\nvalue".to_owned());
        let faults = webhook_secret(&Environment(&get)).err().unwrap().to_string();
        assert!(faults.contains("RESEND_WEBHOOK_SECRET") && !faults.contains("value"), "{faults}");
    }
}
