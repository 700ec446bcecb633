//! From an HTTP request to a checked call: method, secret, parameters, in this order.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use uuid::Uuid;

use super::answer::{Answer, Fields};
use crate::{
    crypto::secret,
    routes::{Kind, Parameter, Route},
    schedule::{Days, Month, MonthlySync, YEARS, monthly_sync_month, parse_at},
    tasks::{Call, Trigger},
};

/// Holds what a request asks for, before anything is looked up.
pub(super) struct Incoming<'a> {
    pub(super) method: &'a str,
    pub(super) query: &'a str,
    /// Holds the header `Authorization`, if there is any; one that is not text counts as wrong.
    pub(super) authorization: Option<&'a str>,
}

/// Says what is to be done about it.
#[derive(Debug)]
pub(super) enum Admission {
    /// Nothing runs, and this is the answer.
    Refuse(Answer),
    /// The call is admitted and runs.
    Run(Box<Call>),
    /// The answer is 202, and the call works on the queue behind it.
    Drain,
}

const BEARER: &str = "bearer ";

/// Lets a request in, or says why not. `expected` is `None` where no secret is configured: then nobody gets in.
pub(super) fn admit(
    route: Route,
    incoming: &Incoming,
    expected: Option<&SecretString>,
    replay_max_days: u16,
    now: DateTime<Utc>,
) -> Admission {
    let pairs: Vec<(Cow<str>, Cow<str>)> = form_urlencoded::parse(incoming.query.as_bytes()).collect();
    let secret_in_query = pairs.iter().find(|(name, _)| name == "secret").map(|(_, value)| value.as_ref());

    let trigger = match (route.kind(), incoming.method) {
        (Kind::Manual | Kind::Drain, "POST") => Trigger::Manual,
        (Kind::Manual, "GET") if secret_in_query.is_some() => {
            // A link must never start anything: neither in a browser nor in somebody's chat preview.
            let refusal = Answer::error(405, "GET avec secret : utilisez POST.");
            return Admission::Refuse(refusal.with_header("allow", route.allow()));
        }
        (Kind::Manual, "GET") if incoming.authorization.is_none() => {
            return Admission::Refuse(instructions(route));
        }
        (Kind::Cron | Kind::Manual, "GET") => Trigger::Cron,
        (_, "OPTIONS" | "HEAD") => {
            return Admission::Refuse(Answer::empty(204).with_header("allow", route.allow()));
        }
        _ => return Admission::Refuse(Answer::wrong_method(route)),
    };

    let by_query = trigger == Trigger::Manual || route.kind() == Kind::Cron;
    let given = match incoming.authorization {
        Some(header) => bearer(header),
        None if by_query && route.kind() != Kind::Drain => secret_in_query,
        None => None,
    };
    let given = given.unwrap_or_default();
    if !secret::matches(expected, given) {
        // In an address a + is a space: whoever has the secret and copied it as it is learns why it is refused.
        let was_decoded = incoming.authorization.is_none()
            && given.contains(' ')
            && secret::matches(expected, &given.replace(' ', "+"));
        return Admission::Refuse(if was_decoded { plus_was_decoded() } else { unauthorized() });
    }

    if route.kind() == Kind::Drain {
        return match pairs.first() {
            Some((name, _)) => Admission::Refuse(bad_request(&unknown(route, name))),
            None => Admission::Drain,
        };
    }
    match call(route, trigger, &pairs, replay_max_days, now) {
        Ok(call) => Admission::Run(Box::new(call)),
        Err(complaint) => Admission::Refuse(bad_request(&complaint)),
    }
}

/// Returns what an `Authorization` header bears.
pub(super) fn bearer(header: &str) -> Option<&str> {
    let (scheme, secret) = header.split_at_checked(BEARER.len())?;
    scheme.eq_ignore_ascii_case(BEARER).then_some(secret)
}

fn plus_was_decoded() -> Answer {
    Answer::error(
        401,
        "Non autorisé : dans une adresse, le + du secret s’écrit %2B. Préférez l’en-tête Authorization.",
    )
    .with_header("www-authenticate", "Bearer")
}

pub(super) fn unauthorized() -> Answer {
    Answer::error(401, "Non autorisé : secret absent ou incorrect.").with_header("www-authenticate", "Bearer")
}

fn call(
    route: Route,
    trigger: Trigger,
    pairs: &[(Cow<str>, Cow<str>)],
    replay_max_days: u16,
    now: DateTime<Utc>,
) -> Result<Call, String> {
    let mut values: [Option<&str>; Parameter::ALL.len()] = [None; Parameter::ALL.len()];
    for (name, value) in pairs.iter().filter(|(name, _)| name != "secret") {
        let parameter = route
            .parameters()
            .iter()
            .find(|parameter| parameter.name() == name)
            .ok_or_else(|| unknown(route, name))?;
        if values[*parameter as usize].replace(value).is_some() {
            return Err(format!("Paramètre {parameter} : indiqué deux fois."));
        }
    }
    let value = |parameter: Parameter| values[parameter as usize];
    let flag = |parameter: Parameter| match value(parameter) {
        Some("true") => Ok(true),
        None | Some("false") => Ok(false),
        Some(_) => Err(format!("Paramètre {parameter} : true ou false.")),
    };

    let dry_run = flag(Parameter::DryRun)?;
    let at = value(Parameter::At)
        .map(|text| parse_at(text, now, dry_run, replay_max_days))
        .transpose()
        .map_err(|error| format!("Paramètre at : {error}."))?;
    let user_id = value(Parameter::UserId)
        .map(str::parse::<Uuid>)
        .transpose()
        .map_err(|_| "Paramètre user_id : un UUID est attendu.".to_owned())?;
    let month: Option<Month> = value(Parameter::Month)
        .map(str::parse)
        .transpose()
        .map_err(|_| "Paramètre month : AAAA-MM est attendu, par exemple 2026-10.".to_owned())?;
    if month.is_some_and(|month| !YEARS.contains(&month.year())) {
        let (first, last) = YEARS.into_inner();
        return Err(format!("Paramètre month : l’année doit être comprise entre {first} et {last}."));
    }
    let days: Option<Days> = value(Parameter::Days)
        .map(str::parse)
        .transpose()
        .map_err(|error| format!("Paramètre days : {error}."))?;
    let call = Call {
        route: route.path(),
        via: route.via(),
        trigger,
        at: at.unwrap_or(now),
        replay: at.is_some(),
        dry_run,
        user_id,
        force: flag(Parameter::Force)? || month.is_some(),
        month,
        // An operator who says nothing means the last 30 days; a cron goes on from the last success.
        days: days.or((route == Route::SyncIntegrations && trigger == Trigger::Manual)
            .then_some(crate::schedule::DEFAULT_DAYS)),
    };
    if route == Route::MonthlySync {
        match monthly_sync_month(call.at, call.force, call.month) {
            Ok(MonthlySync::Run(_) | MonthlySync::NotDue(_)) => {}
            Err(future) => return Err(format!("Paramètre month : {future}.")),
        }
    }
    Ok(call)
}

fn unknown(route: Route, name: &str) -> String {
    // The name is the caller's: cut, and JSON-escaped like every answer.
    let name: String = name.chars().take(40).collect();
    let known: Vec<&str> = route.parameters().iter().map(|parameter| parameter.name()).collect();
    if known.is_empty() {
        format!("Paramètre inconnu : {name}. Cette route n’en prend aucun.")
    } else {
        format!("Paramètre inconnu : {name}. Paramètres possibles : {}.", known.join(", "))
    }
}

/// Parameters in the body would be left unread, and the run would be another than the one that was meant.
pub(super) fn parameters_in_body() -> Answer {
    bad_request("Paramètres dans le corps de la requête : ils se mettent dans l’adresse (?nom=valeur).")
}

/// Tells whether a body says nothing: what clients send when they have to send something.
pub(super) fn says_nothing(body: &[u8]) -> bool {
    matches!(body.trim_ascii(), b"" | b"{}" | b"null")
}

fn bad_request(complaint: &str) -> Answer {
    Answer::error(400, complaint)
}

fn instructions(route: Route) -> Answer {
    let parameters: Vec<&str> = route.parameters().iter().map(|parameter| parameter.help()).collect();
    Answer::json(
        200,
        &Fields::new()
            .with("message", &route.purpose())
            .with("method", &"POST")
            .with("endpoint", &route.path())
            .with(
                "authentification",
                &"Authorization: Bearer VOTRE_CRON_SECRET (préféré), ou ?secret=VOTRE_CRON_SECRET",
            )
            .with(
                "exemple",
                &format!(
                    "curl -X POST \"https://VOTRE_DOMAINE{}\" -H \"Authorization: Bearer VOTRE_CRON_SECRET\"",
                    route.path()
                ),
            )
            .with("parametres", &parameters),
    )
}

#[cfg(test)]
mod tests;
