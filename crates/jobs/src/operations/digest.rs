//! Gathers what the operator is mailed once a day: what failed, was missed, is stuck, or is unknown. Pure.

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike, TimeDelta, Utc, Weekday};
use serde::Deserialize;

use super::{
    claims::{ClaimedSlot, has_claims, unclaimed},
    view::{doubted_lists, permanent_tokens},
};
use crate::{
    email::DigestPoint,
    failure::cut,
    providers::Outage,
    routes::Route,
    schedule::{Missed, Settings, Task, paris},
    words,
};

/// Crons that were missed longer ago were told before.
const MISSED_SINCE: TimeDelta = TimeDelta::days(2);
/// Bounds a point's text, in characters: it may quote what others wrote.
const MOST_DETAIL: usize = 500;
/// Names each orchestrator, and how long after its last call it is missed: its rhythm and an hour or two.
const ORCHESTRATORS: [(&str, i64); 2] =
    [(Route::DailyOrchestrator.path(), 8), (Route::MonthlyOrchestrator.path(), 26)];

/// Holds what `jobs_troubles` answers.
#[derive(Deserialize)]
pub(crate) struct Troubles {
    slots: Vec<ClaimedSlot>,
    failed: Vec<Failed>,
    stuck: Vec<Stuck>,
    calls: Vec<FailedCalls>,
    /// Counts the users who, since the last digest, have written something that cannot be read.
    unreadable: u64,
    #[serde(default)]
    outages: Vec<Outage>,
    /// Counts mails that the mail service accepted, that did not arrive, and that are not sent again.
    #[serde(default)]
    undelivered: Vec<Undelivered>,
    #[serde(default)]
    permanent_tokens: u64,
    #[serde(default)]
    doubted_lists: u64,
    /// Says when each route was called by a cron last.
    routes: BTreeMap<String, DateTime<Utc>>,
}

#[derive(Deserialize)]
struct Failed {
    lane: String,
    message: Option<String>,
    count: u64,
}

#[derive(Deserialize)]
struct Undelivered {
    lane: String,
    feedback: String,
    count: u64,
}

#[derive(Deserialize)]
struct Stuck {
    lane: String,
    count: u64,
    oldest: DateTime<Utc>,
}

#[derive(Deserialize)]
struct FailedCalls {
    route: Option<String>,
    message: Option<String>,
    count: u64,
}

/// Returns what is worth a mail, in words, seen from this route's call.
pub(crate) fn points(
    troubles: &Troubles,
    route: &str,
    now: DateTime<Utc>,
    settings: Settings,
) -> Vec<DigestPoint> {
    let mut points = Vec::new();
    for outage in &troubles.outages {
        points.push(point(
            "Panne générale".to_owned(),
            outage.message(),
            outage.failing.unwrap_or(outage.active),
        ));
    }
    for (other, hours) in ORCHESTRATORS.into_iter().filter(|(other, _)| *other != route) {
        // One that has never been called is not deployed.
        if let Some(last) = troubles.routes.get(other)
            && now - *last > TimeDelta::hours(hours)
        {
            points.push(point(
                format!("{other} n’est plus appelé"),
                format!(
                    "Dernier appel par un cron le {}. Vérifiez les crons du déploiement sur Vercel.",
                    paris::french_minute(*last)
                ),
                1,
            ));
        }
    }
    for task in [Task::SyncIntegrations, Task::MarketingDay3, Task::MonthlyReminders, Task::MonthlySync] {
        // A task that no cron has ever run is not scheduled here.
        if !has_claims(&troubles.slots, task) {
            continue;
        }
        let missed: Vec<_> = unclaimed(&troubles.slots, task, now - MISSED_SINCE, now, settings)
            .into_iter()
            .filter(|missed| !missed.made_up)
            .collect();
        if let Some(newest) = missed.first() {
            points.push(point(
                format!("Passage manqué : {}", task.french()),
                missed_detail(newest),
                missed.len() as u64,
            ));
        }
    }
    for failed in &troubles.failed {
        points.push(point(
            format!("Échecs : {}", words::lane(&failed.lane)),
            failed.message.clone().unwrap_or_else(|| words::NO_EXPLANATION.to_owned()),
            failed.count,
        ));
    }
    for undelivered in &troubles.undelivered {
        points.push(point(
            format!("Non remis : {}", words::lane(&undelivered.lane)),
            words::feedback(&undelivered.feedback).to_owned(),
            undelivered.count,
        ));
    }
    for stuck in &troubles.stuck {
        points.push(point(
            words::waits_too_long(&stuck.lane),
            format!("Le plus ancien attend depuis le {}.", paris::french_minute(stuck.oldest)),
            stuck.count,
        ));
    }
    for call in &troubles.calls {
        points.push(point(
            format!("Appels en échec : {}", call.route.as_deref().unwrap_or("?")),
            call.message.clone().unwrap_or_default(),
            call.count,
        ));
    }
    if troubles.unreadable > 0 {
        points.push(point(
            "Saisies illisibles".to_owned(),
            "Ce que ces utilisateurs ont saisi ne peut plus être lu. La page d’état les nomme et dit quoi."
                .to_owned(),
            troubles.unreadable,
        ));
    }
    if troubles.doubted_lists > 0 {
        let count = troubles.doubted_lists;
        points.push(point("Listes incomplètes".to_owned(), doubted_lists(count), count));
    }
    // It is no news of the day: beside others, and on Mondays.
    if troubles.permanent_tokens > 0 && (!points.is_empty() || paris::date(now).weekday() == Weekday::Mon) {
        let count = troubles.permanent_tokens;
        points.push(point("Jetons Shopify permanents".to_owned(), permanent_tokens(count), count));
    }
    points
}

fn missed_detail(missed: &Missed) -> String {
    let taken = format!("Le créneau {} n’a été pris par aucun cron.", missed.occurrence.slot);
    match missed.made_up_until {
        Some(end) => format!(
            "{taken} Le prochain passage de ce cron le rattrape, jusqu’au {}.",
            paris::french(paris::date(end - TimeDelta::seconds(1)))
        ),
        None => format!("{taken} La page d’état permet de le rejouer."),
    }
}

fn point(title: String, mut detail: String, count: u64) -> DigestPoint {
    detail.truncate(cut(&detail, MOST_DETAIL).len());
    DigestPoint { title, detail, count }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn troubles(value: &Value) -> Troubles {
        let mut all =
            json!({"slots": [], "failed": [], "stuck": [], "calls": [], "unreadable": 0, "routes": {}});
        for (key, part) in value.as_object().unwrap() {
            all[key] = part.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    fn titles(value: &Value, now: &str) -> Vec<String> {
        let points = points(&troubles(value), "/api/cron/daily-orchestrator", at(now), Settings::default());
        points.into_iter().map(|point| format!("{} x{}", point.title, point.count)).collect()
    }

    #[test]
    fn a_day_without_trouble_has_no_points() {
        assert_eq!(titles(&json!({}), "2026-11-24T12:05:00Z"), Vec::<String>::new());
        let taken: Vec<Value> = [
            "2026-11-22T18Z",
            "2026-11-23T00Z",
            "2026-11-23T06Z",
            "2026-11-23T12Z",
            "2026-11-23T18Z",
            "2026-11-24T00Z",
            "2026-11-24T06Z",
            "2026-11-24T12Z",
        ]
        .map(|slot| json!({"task": "sync_integrations", "slot": slot}))
        .to_vec();
        let routes = json!({"/api/cron/daily-orchestrator": "2026-11-24T12:00:00Z",
            "/api/cron/monthly-orchestrator": "2026-11-24T07:00:00Z"});
        assert_eq!(
            titles(&json!({"slots": taken, "routes": routes}), "2026-11-24T12:05:00Z"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn an_orchestrator_that_is_not_called_any_more_is_noticed_by_the_other() {
        let routes = json!({"/api/cron/daily-orchestrator": "2026-11-24T12:00:00Z",
            "/api/cron/monthly-orchestrator": "2026-11-23T07:00:00Z"});
        assert_eq!(
            titles(&json!({"routes": routes}), "2026-11-24T12:05:00Z"),
            ["/api/cron/monthly-orchestrator n’est plus appelé x1"]
        );
    }

    #[test]
    fn what_a_later_run_has_made_up_for_is_not_told() {
        let slots = json!([{"task": "sync_integrations", "slot": "2026-11-24T06Z"}]);
        // Missed before, and the run of 6 h read it all; the one of 12 h is not over yet.
        assert_eq!(titles(&json!({"slots": slots}), "2026-11-24T12:05:00Z"), Vec::<String>::new());
        let told = titles(&json!({"slots": slots}), "2026-11-24T19:30:00Z");
        assert_eq!(told, ["Passage manqué : synchronisation Stripe et Shopify x2"]);
    }

    #[test]
    fn lists_that_lack_what_was_known_are_told() {
        let told = titles(&json!({"doubted_lists": 2}), "2026-11-24T12:05:00Z");
        assert_eq!(told, ["Listes incomplètes x2"]);
    }

    #[test]
    fn permanent_tokens_are_told_on_mondays_and_beside_other_points() {
        let left = json!({"permanent_tokens": 3});
        assert_eq!(titles(&left, "2026-11-23T12:05:00Z"), ["Jetons Shopify permanents x3"]);
        assert_eq!(titles(&left, "2026-11-24T12:05:00Z"), Vec::<String>::new());
        let outage = json!({"provider": "shopify", "message": "m.", "failing": 12, "active": 20});
        let told = titles(&json!({"permanent_tokens": 3, "outages": [outage]}), "2026-11-24T12:05:00Z");
        assert_eq!(told, ["Panne générale x12", "Jetons Shopify permanents x3"]);
    }

    #[test]
    fn what_was_accepted_and_did_not_arrive_is_told() {
        let value = json!({"undelivered": [{"lane": "alerts", "feedback": "bounced", "count": 2}]});
        assert_eq!(titles(&value, "2026-11-24T12:05:00Z"), ["Non remis : alertes x2"]);
    }

    #[test]
    fn failures_and_what_is_stuck_are_told_with_their_number() {
        let value = json!({
            "failed": [{"lane": "marketing", "code": "unknown_outcome", "message": "Nul ne peut dire…", "count": 12}],
            "stuck": [{"lane": "alerts", "count": 3, "oldest": "2026-11-23T10:00:00Z"}],
            "calls": [{"route": "/api/cron/daily-orchestrator", "message": "La base…", "count": 2}],
        });
        assert_eq!(
            titles(&value, "2026-11-24T12:05:00Z"),
            [
                "Échecs : courriels J+3 x12",
                "La file «\u{a0}alertes\u{a0}» attend depuis plus d’un jour x3",
                "Appels en échec : /api/cron/daily-orchestrator x2",
            ]
        );
    }
}
