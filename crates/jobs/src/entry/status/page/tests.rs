//! Pages as people see them.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::*;
use crate::{
    config::Tuning, contrast::contrast, lane, mail_kind::MailKind, operations::facts::DatabaseFacts,
    schedule::Task, words::capitalized,
};

/// Returns what a reader sees of a page.
fn text(html: &str) -> String {
    let body = html.split("<body").nth(1).unwrap();
    body.split('<')
        .filter_map(|piece| piece.split_once('>'))
        .map(|(_, text)| text)
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn no_stored_name_reaches_the_page() {
    let now: DateTime<Utc> = "2026-11-25T12:00:00Z".parse().unwrap();
    let (id, day) = ("5f0c0e52-8a4e-4c4b-9b0c-2f6d1a7e0001", "2026-11-25");
    let counts = json!({"sent": 1, "failed": 1, "unknown": 1, "skipped": 1, "suppressed": 1, "returned": 1});
    let kinds: Vec<&str> = MailKind::ALL.map(MailKind::as_str).into_iter().chain(["later_kind"]).collect();
    let lanes: Vec<&str> =
        lane::Lane::ALL.map(lane::Lane::as_str).into_iter().chain(["later_lane"]).collect();
    let days: Vec<Value> = kinds
        .iter()
        .map(|kind| {
            let mut day = json!({"kind": kind, "day": day});
            day.as_object_mut().unwrap().extend(counts.as_object().unwrap().clone());
            day
        })
        .collect();
    let run = |task: Task| {
        let of_lanes = lanes.iter().map(|lane| {
            json!({"lane": lane, "planned": 7, "queued": 1, "done": 1,
            "partial": 1, "failed": 1, "skipped": 1, "superseded": 1})
        });
        let troubled = lanes.iter().map(|lane| {
            json!({"user_id": id, "address": null, "lane": lane,
            "status": "queued", "code": "unknown_outcome", "message": null})
        });
        json!({"run_id": id, "task": task, "slot": null, "trigger": "replay", "as_of": now, "status": "partial",
            "started_at": now, "duration_ms": 1, "parameters": {"retry": "alerts"}, "records": 1, "troubles": 9,
            "skipped": {"metadata_says_paid": 1, "later_reason": 2}, "lanes": of_lanes.collect::<Vec<_>>(),
            "troubled": troubled.collect::<Vec<_>>()})
    };
    let facts: DatabaseFacts = serde_json::from_value(json!({
        "missing": [], "slots": [], "first_claims": {"marketing_day3": "2026-11-20T12:00:00Z"},
        "runs": {"runs": Task::ALL.map(run), "single": [{"task": "monthly_sync", "runs": 1, "erred": 1}]},
        "queue": lanes.iter().map(|lane| json!({"lane": lane, "waiting": 2, "in_flight": 1, "put_off": 1,
            "oldest": "2026-11-24T12:00:00Z", "failed": 1, "unknown": 1})).collect::<Vec<_>>(),
        "mails": {"days": days, "suppressed_addresses": 1, "reasons": kinds.iter().map(|kind| json!({
            "kind": kind, "status": "skipped", "reason": "refused_by_user", "count": 1})).collect::<Vec<_>>()},
        "integrations": {"broken_total": 2, "shopify_renewed": null, "refused_credentials": [],
            "states": [{"provider": "stripe", "state": "failing", "count": 1}],
            "broken": [{"user_id": id, "address": null, "provider": "stripe", "failures": 1, "failed_at": now,
                "last_success_at": null, "code": "token_rejected", "message": null}]},
        "unreadable": {"total": 2, "users": [
            {"user_id": id, "address": null, "flaw": "unreadable_amount", "since": now}]},
    }))
    .unwrap();
    let status = Status::new(now, &Tuning::default(), Vec::new(), Some(facts));
    let page = super::status(&status, &Viewer { token: Some("t") }, None);
    let text = text(page.body());
    let stored: Vec<&str> = text
        .split(|char: char| !char.is_ascii_alphanumeric() && char != '_')
        .filter(|word| word.contains('_') && word.chars().all(|char| !char.is_ascii_uppercase()))
        .collect();
    assert_eq!(stored, Vec::<&str>::new());
    for lane in lane::Lane::ALL {
        assert!(text.contains(&capitalized(lane.french())), "{lane:?}");
    }
    for kind in MailKind::ALL {
        assert!(text.contains(&capitalized(kind.french())), "{kind:?}");
    }
    for wrong in ["1\u{a0}envoyés", "1 envoyés", "1\u{a0}écartés", "1\u{a0}faits", "Et 1 autres"] {
        assert!(!text.contains(wrong), "{wrong}");
    }
}

/// The colours of both schemes come from the page itself.
#[test]
fn everything_can_be_read_in_both_schemes() {
    let html = SignInPage { trouble: None, minutes: 30 }.render().unwrap();
    let schemes: Vec<&str> =
        html.split(":root {").skip(1).map(|rest| rest.split('}').next().unwrap()).collect();
    assert_eq!(schemes.len(), 2);
    for scheme in schemes {
        let colour = |name: &str| {
            let (_, rest) = scheme.split_once(&format!("--{name}: ")).unwrap_or_else(|| panic!("{name}"));
            rest.split(';').next().unwrap()
        };
        for ink in ["ink", "soft", "link", "good", "bad", "unknown"] {
            for ground in ["ground", "card", "panel"] {
                let contrast = contrast(colour(ink), colour(ground));
                assert!(contrast >= 4.5, "{ink} on {ground}: {contrast}");
            }
        }
        assert!(contrast(colour("on-link"), colour("link")) >= 4.5);
        for bar in ["link", "bad", "unknown", "bar"] {
            assert!(contrast(colour(bar), colour("card")) >= 3.0, "{bar}");
        }
    }
}
