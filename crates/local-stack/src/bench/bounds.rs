//! Works out what a measured call comes to: its lanes, and the least time they could have taken.

use std::collections::HashMap;

use stand_ins::faults::Seen;

use super::{
    report::{Lane, Run, float},
    world::{CONCURRENCY, Called, DATABASE_TRIP, MAIL_TRIP, PROVIDER_TRIP},
};

/// So many batches of mails are under way at once.
const MAILS_AT_ONCE: usize = 8;

pub(super) fn synced(
    workload: &'static str,
    items: usize,
    called: &Called,
    stripe_rate: Option<usize>,
) -> Run {
    let stripe = Lane::new("stripe", called.stripe.len(), PROVIDER_TRIP, CONCURRENCY)
        .rate(stripe_rate)
        .chain(longest(&called.stripe, account_of), PROVIDER_TRIP);
    let shopify = Lane::new("shopify", called.shopify.len(), PROVIDER_TRIP, CONCURRENCY)
        .chain(longest(&called.shopify, shop_of), PROVIDER_TRIP);
    let lanes = vec![stripe, shopify, database_lane(called)];
    let per_item = float(called.database.len()) / float(items);
    let mut run = run(workload, items, called, lanes);
    run.notes.push(format!("{per_item:.2} database requests per integration"));
    run
}

pub(super) fn mailed(workload: &'static str, items: usize, called: &Called, rate: u32) -> Run {
    let lanes = vec![mail_lane(called, rate), database_lane(called)];
    run(workload, items, called, lanes)
}

pub(super) fn mail_lane(called: &Called, rate: u32) -> Lane {
    let rate = usize::try_from(rate).ok();
    Lane::new("mails", called.resend.len(), MAIL_TRIP, MAILS_AT_ONCE).rate(rate)
}

/// Returns what all lanes together may ask at once.
pub(super) fn database_lane(called: &Called) -> Lane {
    Lane::new("database", called.database.len(), DATABASE_TRIP, 3 * CONCURRENCY)
}

pub(super) fn run(workload: &'static str, items: usize, called: &Called, lanes: Vec<Lane>) -> Run {
    let &Called { wall, planned, usage, peak_rss, load, .. } = called;
    let upstream = called.stripe.len() + called.shopify.len() + called.resend.len();
    let notes = vec![functions_called(&called.database)];
    let run = Run {
        workload,
        items,
        wall,
        planned,
        upstream_requests: upstream,
        database_requests: called.database.len(),
        lanes,
        lower_bound: 0.0,
        ratio: 0.0,
        peak_rss,
        cpu: 0.0,
        stand_in_cpu: 0.0,
        database_cpu: 0.0,
        other_cpu: 0.0,
        load,
        notes,
    };
    run.cost(usage).bounded()
}

/// Returns how often each database function was called.
fn functions_called(database: &[Seen]) -> String {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for seen in database {
        let path = seen.target.split('?').next().unwrap_or_default();
        *counts.entry(path.rsplit('/').next().unwrap_or_default()).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

/// Returns the most requests that one account or shop got, which wait for each other.
pub(super) fn longest(requests: &[Seen], whose: impl Fn(&Seen) -> String) -> usize {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for seen in requests {
        *counts.entry(whose(seen)).or_default() += 1;
    }
    counts.into_values().max().unwrap_or_default()
}

/// Returns the account's id, or the token that was made from it.
pub(super) fn account_of(seen: &Seen) -> String {
    let text = |name: &str| seen.headers.get(name).and_then(|value| value.to_str().ok());
    let named = text("stripe-account").or_else(|| text("authorization")).unwrap_or_default();
    named.trim_start_matches("Bearer sk_").to_owned()
}

pub(super) fn shop_of(seen: &Seen) -> String {
    seen.target.split('/').nth(1).unwrap_or_default().to_owned()
}
