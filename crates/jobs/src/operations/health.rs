//! Looks at each dependency now: good, to be put right, or not known, each with what to do.
//!
//! Stripe and Resend are asked once, side by side and not for long; Supabase has been asked by then.

use std::time::Duration;

use secrecy::ExposeSecret;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    facts::{DatabaseFacts, RefusedCredentials},
    own_address::OwnAddress,
};
use crate::{
    config::Config,
    config_faults::ConfigFaults,
    deadline::Deadline,
    email::Domain,
    providers::{ErrorKind, ProviderError, RefusedReason},
    schedule::paris,
    supabase::{SupabaseError, SupabaseKey},
};

/// Each live check may take so long.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

/// Says how something is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) enum State {
    #[serde(rename = "bon")]
    Good,
    #[serde(rename = "inconnu")]
    Unknown,
    #[serde(rename = "à corriger")]
    Bad,
}

impl State {
    pub(crate) const fn french(self) -> &'static str {
        match self {
            Self::Good => "bon",
            Self::Unknown => "inconnu",
            Self::Bad => "à corriger",
        }
    }

    pub(crate) const fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Unknown => "unknown",
            Self::Bad => "bad",
        }
    }
}

/// Represents one dependency.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) state: State,
    pub(crate) message: String,
    /// Says what to do.
    #[serde(rename = "todo", skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
    /// Several faults were found, each with its own sentence.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) faults: Vec<String>,
}

impl Check {
    fn new(name: &'static str, state: State, message: impl Into<String>) -> Self {
        Self { name, state, message: french(&message.into()), remedy: None, faults: Vec::new() }
    }

    fn and(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(french(&remedy.into())), ..self }
    }
}

/// No line begins with a colon or a semicolon.
fn french(text: &str) -> String {
    text.replace(" :", "\u{a0}:").replace(" ;", "\u{a0};")
}

/// Holds what the live checks brought; `None` where nothing could be asked.
pub(crate) struct Live {
    pub(crate) stripe: Option<Result<(), ProviderError>>,
    pub(crate) domain: Option<Domain>,
    pub(crate) own_address: Option<OwnAddress>,
}

/// Returns a deadline of its own for each check.
pub(crate) fn deadline() -> Deadline {
    let end = Instant::now() + TIMEOUT;
    Deadline::new(end, end)
}

/// Checks everything, in the order in which an operator would look.
/// `facts`: nothing where the configuration does not say whom to ask.
pub(crate) fn checks(
    config: &Config,
    facts: Option<&Result<DatabaseFacts, SupabaseError>>,
    live: &Live,
) -> Vec<Check> {
    let known = facts.and_then(|facts| facts.as_ref().ok());
    let mut checks = vec![
        configuration(config),
        key(config),
        database(facts),
        migrations(facts),
        resend(config, live.domain.as_ref()),
        stripe(config, live.stripe.as_ref(), known),
        shopify(config, known),
    ];
    checks.extend(live.own_address.map(own_address));
    checks
}

fn own_address(found: OwnAddress) -> Check {
    let name = "Adresse de ce déploiement";
    match (found, found.fault()) {
        (_, Some(fault)) => Check::new(name, State::Bad, fault).and(OwnAddress::REMEDY),
        (OwnAddress::Unreachable, None) => Check::new(name, State::Unknown, "JOBS_BASE_URL n’a pas répondu.")
            .and("Recharger la page ; si cela dure : vérifier JOBS_BASE_URL."),
        (_, None) => Check::new(name, State::Good, "JOBS_BASE_URL mène à ce déploiement."),
    }
}

fn configuration(config: &Config) -> Check {
    let parts = [
        config.supabase.as_ref().err(),
        config.tuning.as_ref().err(),
        config.integrations.as_ref().err(),
        config.mail.as_ref().err(),
        config.prices.as_ref().err(),
        config.link_keys.as_ref().err(),
        config.webhook_secret.as_ref().err(),
    ];
    let faults = ConfigFaults::all(parts.into_iter().flatten());
    let faults: Vec<String> = faults.iter().map(str::to_owned).collect();
    let name = "Configuration";
    if faults.is_empty() {
        return Check::new(
            name,
            State::Good,
            "Toutes les variables nécessaires sont définies et bien formées.",
        );
    }
    let message = match faults.len() {
        1 => "1 variable à corriger.".to_owned(),
        n => format!("{n} variables à corriger."),
    };
    let mut check = Check::new(name, State::Bad, message)
        .and("Vercel, Project Settings, Environment Variables, puis redéployer : une variable changée ne vaut qu’au déploiement suivant.");
    check.faults = faults;
    check
}

fn key(config: &Config) -> Check {
    let name = "Clé Supabase";
    match &config.supabase {
        Ok(supabase) => match &supabase.key {
            SupabaseKey::Secret(_) => Check::new(name, State::Good, "Clé secrète (sb_secret_…)."),
            SupabaseKey::LegacyJwt(_) => Check::new(name, State::Good, "Ancienne clé service_role (JWT).")
                .and("Elle marche ; Supabase conseille de passer à une clé secrète sb_secret_…"),
        },
        Err(_) => Check::new(name, State::Unknown, "Aucune clé utilisable : voir Configuration."),
    }
}

fn database(facts: Option<&Result<DatabaseFacts, SupabaseError>>) -> Check {
    let name = "Base de données Supabase";
    match facts {
        None => Check::new(name, State::Unknown, "Pas interrogée : voir Configuration."),
        Some(Ok(_) | Err(SupabaseError::MissingMigration { .. })) => {
            Check::new(name, State::Good, "Elle répond.")
        }
        Some(Err(error)) => Check::new(name, State::Bad, error.user_message()).and(
            "Sans elle, rien n’est planifié ni envoyé ; rien n’est perdu non plus : les exécutions manquées se rejouent ici.",
        ),
    }
}

fn migrations(facts: Option<&Result<DatabaseFacts, SupabaseError>>) -> Check {
    let name = "Migrations";
    let apply = "Appliquer les fichiers de supabase/migrations (supabase db push).";
    match facts {
        Some(Ok(facts)) if facts.missing.is_empty() => {
            Check::new(name, State::Good, "Toutes les fonctions de cette version existent.")
        }
        Some(Ok(facts)) => {
            let mut check =
                Check::new(name, State::Bad, "Des fonctions de cette version manquent.").and(apply);
            check.faults.clone_from(&facts.missing);
            check
        }
        Some(Err(error @ (SupabaseError::MissingMigration { .. } | SupabaseError::Shape { .. }))) => {
            Check::new(name, State::Bad, error.user_message()).and(apply)
        }
        _ => Check::new(name, State::Unknown, "La base de données n’a pas pu être interrogée."),
    }
}

fn resend(config: &Config, domain: Option<&Domain>) -> Check {
    let name = "Resend";
    if config.mail.is_err() {
        return Check::new(name, State::Unknown, "Pas interrogé : voir Configuration.");
    }
    match domain {
        Some(Domain::Verified) => {
            Check::new(name, State::Good, "La clé est acceptée et le domaine de COMPANY_FROM_EMAIL est vérifié.")
        }
        Some(Domain::NotVerified(status)) => Check::new(
            name,
            State::Bad,
            format!("Le domaine de COMPANY_FROM_EMAIL n’est pas vérifié (état chez Resend : {status})."),
        )
        .and("Resend, Domains : ajouter les enregistrements DNS indiqués, puis Verify."),
        Some(Domain::Missing) => {
            Check::new(name, State::Bad, "Ce compte Resend n’a pas le domaine de COMPANY_FROM_EMAIL.")
                .and("Ajouter le domaine chez Resend, ou corriger COMPANY_FROM_EMAIL ou RESEND_API_KEY.")
        }
        Some(Domain::NotTold) => Check::new(
            name,
            State::Unknown,
            "La clé ne peut qu’envoyer : l’état du domaine ne peut pas être demandé. Ce n’est pas une faute.",
        )
        .and("Le voir chez Resend, Domains. Un domaine refusé se voit aussi dans la file : les courriels y restent."),
        Some(Domain::KeyRefused) => {
            Check::new(name, State::Bad, "La clé est refusée.").and("Vérifier RESEND_API_KEY.")
        }
        Some(Domain::Unreachable) | None => {
            Check::new(name, State::Unknown, "Resend n’a pas répondu comme attendu.")
                .and("Recharger la page ; si cela dure : resend-status.com, et RESEND_BASE_URL si elle est définie.")
        }
    }
}

/// Returns the last time, within a day, that this provider has refused us and not a user.
fn refused<'a>(facts: Option<&'a DatabaseFacts>, provider: &str) -> Option<&'a RefusedCredentials> {
    let all = facts?.integrations.refused_credentials.iter();
    all.filter(|refused| refused.message.contains(provider)).max_by_key(|refused| refused.at)
}

fn lacking_permission() -> Check {
    Check::new("Stripe", State::Bad, "La clé ne peut pas lire tous les mouvements des comptes reliés.").and(
        "Lui donner la lecture de Connect, de Balance transactions et de leurs sources (Charges, Refunds, Disputes), \
         ou mettre une clé sk_… d’une plateforme Connect dans STRIPE_SECRET_KEY.",
    )
}

fn stripe(
    config: &Config,
    asked: Option<&Result<(), ProviderError>>,
    facts: Option<&DatabaseFacts>,
) -> Check {
    let name = "Stripe";
    let Ok(integrations) = &config.integrations else {
        return Check::new(name, State::Unknown, "Pas interrogé : voir Configuration.");
    };
    match asked {
        // One kind of source may need what the movement that was just asked for does not.
        Some(Ok(())) if refused(facts, "Stripe").is_some_and(|refused| refused.code == "own_permission") => {
            lacking_permission()
        }
        Some(Ok(())) => {
            let secret = integrations.stripe_secret_key.expose_secret();
            if secret.starts_with("sk_test_") || secret.starts_with("rk_test_") {
                Check::new(name, State::Good, "La clé est acceptée ; c’est une clé de test.")
            } else {
                Check::new(name, State::Good, "La clé est acceptée.")
            }
        }
        Some(Err(error)) => match error.kind {
            ErrorKind::OwnCredentials => Check::new(name, State::Bad, "La clé est refusée.")
                .and("Vérifier STRIPE_SECRET_KEY (Stripe, Developers, API keys)."),
            ErrorKind::OwnPermission { .. } | ErrorKind::Refused(RefusedReason::PermissionLacking) => {
                lacking_permission()
            }
            ErrorKind::Transient(_) | ErrorKind::OutOfTime => {
                Check::new(name, State::Unknown, "Stripe n’a pas répondu comme attendu.")
                    .and("Recharger la page ; si cela dure : status.stripe.com.")
            }
            _ => Check::new(name, State::Unknown, error.user_message())
                .and("Vérifier STRIPE_SECRET_KEY, et STRIPE_API_BASE si elle est définie."),
        },
        None => Check::new(name, State::Unknown, "Pas interrogé."),
    }
}

fn shopify(config: &Config, facts: Option<&DatabaseFacts>) -> Check {
    let name = "Shopify";
    if config.integrations.is_err() {
        return Check::new(name, State::Unknown, "Pas jugé : voir Configuration.");
    }
    let Some(facts) = facts else {
        return Check::new(name, State::Unknown, "La base de données n’a pas pu être interrogée.");
    };
    if let Some(RefusedCredentials { at, code, .. }) = refused(Some(facts), name) {
        if code == "app_not_approved" {
            let message = format!(
                "Shopify a refusé l’application le {} : elle n’est pas approuvée pour ces données.",
                paris::french_minute(*at)
            );
            return Check::new(name, State::Bad, message).and(
                "Demander l’accès aux « protected customer data » (Shopify, tableau de bord de l’application, API access).",
            );
        }
        if code == "permanent_token" {
            let message = format!(
                "Shopify a refusé un jeton permanent le {} : il n’en accepte plus de cette application.",
                paris::french_minute(*at)
            );
            return Check::new(name, State::Bad, message).and(
                "Voir « Jetons Shopify permanents » dans le guide : SHOPIFY_EXCHANGE_PERMANENT_TOKENS les échange ; l’application web doit demander des jetons qui expirent.",
            );
        }
        let message =
            format!("Shopify a refusé les identifiants de l’application le {}.", paris::french_minute(*at));
        return Check::new(name, State::Bad, message)
            .and("Vérifier SHOPIFY_CLIENT_ID et SHOPIFY_CLIENT_SECRET (Shopify, tableau de bord de l’application).");
    }
    if facts.integrations.shopify_renewed == Some(true) {
        return Check::new(
            name,
            State::Good,
            "Les identifiants ont servi à renouveler un jeton encore valable.",
        );
    }
    Check::new(
        name,
        State::Unknown,
        "Les identifiants sont définis ; aucun refus depuis 24 heures. Shopify ne les juge qu’au renouvellement d’un jeton.",
    )
}
