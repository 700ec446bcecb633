//! Gathers what the operator is mailed once a day: what failed, was missed, is stuck, or is unknown. Pure.

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike, TimeDelta, Utc, Weekday};
use serde::Deserialize;

use super::{
    claims::{ClaimedSlot, expects, has_claims, in_use_since, unclaimed},
    own_address::OwnAddress,
    view::{doubted_lists, permanent_tokens},
};
use crate::{
    deployment_file::DeploymentFile,
    email::DigestPoint,
    failure::cut,
    providers::Outage,
    routes::Route,
    schedule::{Missed, Settings, Task, paris},
    words,
};

/// Crons that were missed longer ago were told before.
const MISSED_SINCE: TimeDelta = TimeDelta::days(2);
/// No slot is open for longer.
const LONGEST_SLOT: TimeDelta = TimeDelta::days(7);
/// Bounds a point's text, in characters: it may quote what others wrote.
const MOST_DETAIL: usize = 500;
/// A route that is called every day is missed so many hours after its next call was due.
const LATE_HOURS: i64 = 2;

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
    /// Says when each route was called by a cron for the first time, as far as calls are looked at.
    #[serde(default)]
    first_calls: BTreeMap<String, DateTime<Utc>>,
    /// Says when a cron claimed the first slot of all: nothing was expected before.
    #[serde(default)]
    first_claim: Option<DateTime<Utc>>,
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
    file: DeploymentFile,
) -> Vec<DigestPoint> {
    let mut points = Vec::new();
    for outage in &troubles.outages {
        points.push(point(
            "Panne générale".to_owned(),
            outage.message(),
            outage.failing.unwrap_or(outage.active),
        ));
    }
    points.extend(not_called(troubles, route, now, file));
    // By when they were over: a week's slot opened long before.
    let opened = now - MISSED_SINCE - LONGEST_SLOT;
    let since = troubles.first_claim.map_or(opened, |first| first.max(opened));
    for task in Task::ALL {
        // What no cron has ever run is missed where the deployment's file says that one should have.
        let expected =
            expects(file, task) && (troubles.first_claim.is_some() || has_claims(&troubles.slots, task));
        if !expected {
            continue;
        }
        // Another file did not schedule it: before the switch nobody was to run it.
        let in_use = in_use_since(file, &troubles.first_calls).filter(|_| !task.is_scheduled_everywhere());
        let since = in_use.map_or(since, |in_use| in_use.max(since));
        let missed: Vec<_> = unclaimed(&troubles.slots, task, since, now, settings)
            .into_iter()
            .filter(|missed| !missed.made_up && missed.occurrence.closes > now - MISSED_SINCE)
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
        points.push(point("Jetons Shopify permanents".to_owned(), permanent_tokens(count, now), count));
    }
    points
}

/// Tells of each route that a cron should call every day and has not: any more, or ever. The one that is at work is called.
fn not_called(
    troubles: &Troubles,
    route: &str,
    now: DateTime<Utc>,
    file: DeploymentFile,
) -> Vec<DigestPoint> {
    let others = Route::ALL.into_iter().map(Route::path).filter(|path| *path != route);
    let mut points = Vec::new();
    for path in others {
        let Some(gap) = file.longest_gap(path) else { continue };
        let last = troubles.routes.get(path).copied();
        let Some(since) = last.or(troubles.first_claim) else { continue };
        if now - since <= TimeDelta::hours(i64::from(gap) + LATE_HOURS) {
            continue;
        }
        let (title, said) = match last {
            Some(last) => (
                format!("{path} n’est plus appelé"),
                format!("Dernier appel par un cron le {}.", paris::french_minute(last)),
            ),
            None => (
                format!("{path} n’est pas appelé"),
                format!("Aucun cron ne l’a appelé, alors que {} le prévoit.", file.as_str()),
            ),
        };
        points.push(point(
            title,
            format!("{said} Vérifiez les crons du déploiement sur Vercel, et DEPLOYMENT_FILE."),
            1,
        ));
    }
    points
}

/// Returns the point that tells what is wrong with our own address.
pub(crate) fn wrong_address(fault: &str) -> DigestPoint {
    point("Adresse de ce déploiement".to_owned(), format!("{fault} {}", OwnAddress::REMEDY), 1)
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
        titles_with(value, now, DeploymentFile::Default)
    }

    fn titles_with(value: &Value, now: &str, file: DeploymentFile) -> Vec<String> {
        let points =
            points(&troubles(value), "/api/cron/daily-orchestrator", at(now), Settings::default(), file);
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

    /// The crons of days and hours have come by; nobody took the reminders of the first month, nor of the second.
    #[test]
    fn a_first_and_a_second_month_are_expected_alike() {
        let routes = json!({"/api/cron/daily-orchestrator": "2026-12-03T12:00:00Z",
            "/api/cron/monthly-orchestrator": "2026-12-03T07:00:00Z"});
        let slots: Vec<Value> = ["2026-12-01", "2026-12-02", "2026-12-03"]
            .iter()
            .map(|day| json!({"task": "marketing_day3", "slot": day}))
            .chain([json!({"task": "sync_integrations", "slot": "2026-12-03T12Z"})])
            .collect();
        for first in ["2026-11-20T06:00:00Z", "2025-11-20T06:00:00Z"] {
            let value = json!({"first_claim": first, "slots": slots, "routes": routes});
            let told = titles(&value, "2026-12-03T12:05:00Z");
            assert_eq!(told, ["Passage manqué : rappels mensuels x1"], "{first}");
        }
        // Whoever began after that day owes nothing.
        let value = json!({"first_claim": "2026-12-03T06:00:00Z", "slots": slots, "routes": routes});
        assert_eq!(titles(&value, "2026-12-03T12:05:00Z"), Vec::<String>::new());
    }

    /// Each file expects its own: a switch tells neither of the routes that are called no more, nor of the weekly check.
    #[test]
    fn another_file_expects_other_crons() {
        let all: Vec<Value> = ["2026-11-22", "2026-11-23", "2026-11-24"]
            .iter()
            .map(|day| json!({"task": "marketing_day3", "slot": day}))
            .chain([json!({"task": "sync_integrations", "slot": "2026-11-24T06Z"})])
            .collect();
        let routes = json!({"/api/cron/monthly-orchestrator": "2026-11-24T07:00:00Z",
            "/api/cron/daily-tasks": "2026-11-24T09:00:00Z",
            "/api/manual/sync-integrations": "2026-11-24T06:00:00Z"});
        let value = json!({"first_claim": "2026-09-01T06:00:00Z", "slots": all, "routes": routes});
        // 70 days without a check of thresholds: the last week that is over is told.
        let told = titles_with(&value, "2026-11-24T10:05:00Z", DeploymentFile::Pro);
        assert_eq!(told, ["Passage manqué : vérification des seuils x1"]);
        assert_eq!(titles(&value, "2026-11-24T10:05:00Z"), Vec::<String>::new());
        // The file was changed on Wednesday: the Monday of that week was nobody's.
        for (since, missed) in [("2026-11-18T09:00:00Z", 0), ("2026-11-15T09:00:00Z", 1)] {
            let mut value = value.clone();
            value["first_calls"] = json!({"/api/cron/monthly-orchestrator": "2026-10-25T07:00:00Z",
                "/api/cron/daily-tasks": since, "/api/manual/sync-integrations": since,
                "/api/cron/daily-orchestrator": "2026-10-25T06:00:00Z"});
            let told = titles_with(&value, "2026-11-24T10:05:00Z", DeploymentFile::Pro);
            assert_eq!(told.len(), missed, "{since}: {told:?}");
        }
        let value = json!({"first_claim": "2026-09-01T06:00:00Z", "slots": all, "routes": {}});
        let told = titles_with(&value, "2026-11-24T10:05:00Z", DeploymentFile::Hobby);
        assert_eq!(told, ["/api/cron/monthly-orchestrator n’est pas appelé x1"]);
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
