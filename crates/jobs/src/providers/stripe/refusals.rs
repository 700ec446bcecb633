//! Decides whose limit was reached when Stripe refuses a request for its rate. Pure.
//!
//! Neither Stripe's documentation nor the refusal says whether requests with `Stripe-Account` count for the platform or
//! for the connected account, whose owner may ask Stripe a lot with programs of their own. So it is told by who is
//! refused: one account alone has reached its own limit, two among a hundred requests have reached everybody's. Each
//! process sees its own refusals only; so what is not clear yet is noted with the pace, which all processes share.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use reqwest::{Request, RequestBuilder, header::HeaderValue};
use tokio::time::Instant;

use crate::http::Answer;

/// Two accounts that are refused within so many requests and this time are refused together: whatever the pace, more
/// than 1 % of the requests are.
const TOGETHER: u64 = 100;
const LATELY: Duration = Duration::from_mins(1);
/// An account that is refused waits so long at first, twice as long each time after that: as its own retry does.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// Whoever has not been answered for so long after its pause is forgotten.
const FORGOTTEN: Duration = Duration::from_mins(1);

/// Says which limit was reached, as the header `Stripe-Rate-Limited-Reason` names it
/// (<https://docs.stripe.com/rate-limits>).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reason {
    /// Too many requests came, of all or of one endpoint, in a second or at once: slower is better
    /// for each of them. A name that we do not know, or none, is taken for one of these.
    Rate,
    /// One object is asked for too often.
    Resource,
}

impl Reason {
    /// Returns what the answer names, should it be a refusal.
    pub(super) fn of(answer: &Answer) -> Self {
        Self::named(answer.header("stripe-rate-limited-reason"))
    }

    fn named(name: Option<&str>) -> Self {
        match name {
            Some("resource-specific") => Self::Resource,
            // global-rate, endpoint-rate, global-concurrency, endpoint-concurrency
            _ => Self::Rate,
        }
    }
}

/// Says who is asked for: an account by its id, or by its own token.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Asked(u64);

impl Asked {
    /// Returns whom a request asks for: the account that it names, or else whose key it carries.
    pub(super) fn by(request: &RequestBuilder) -> Self {
        let built = request.try_clone().and_then(|request| request.build().ok());
        let headers = built.as_ref().map(Request::headers);
        let name = headers.and_then(|headers| {
            headers.get("stripe-account").or_else(|| headers.get(reqwest::header::AUTHORIZATION))
        });
        Self::hashed(name.map(HeaderValue::as_bytes).unwrap_or_default())
    }

    #[cfg(test)]
    pub(super) fn new(name: &str) -> Self {
        Self::hashed(name.as_bytes())
    }

    fn hashed(name: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// Says who has to be slower.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scope {
    Everybody,
    /// The account was refused alone, and for the first time: it waits already, and the pace is doubted.
    Unclear,
    /// The account has reached a limit of its own; it waits already.
    Account,
}

struct Waiting {
    until: Instant,
    pause: Duration,
}

/// Holds which accounts were refused a moment ago.
#[derive(Default)]
pub(super) struct Refusals {
    /// Says how many requests have been answered or refused.
    requests: u64,
    /// Says who was refused last, at which request and when.
    last: Option<(Asked, u64, Instant)>,
    waiting: HashMap<Asked, Waiting>,
}

impl Refusals {
    /// Returns how long nothing is asked for this account.
    pub(super) fn wait(&self, asked: Asked, now: Instant) -> Duration {
        self.waiting
            .get(&asked)
            .map_or(Duration::ZERO, |waiting| waiting.until.saturating_duration_since(now))
    }

    /// Notes that a request was answered, and not refused for its rate.
    pub(super) fn answered(&mut self, asked: Asked) {
        self.requests += 1;
        self.waiting.remove(&asked);
    }

    /// Notes a refusal, and decides whose limit it was.
    pub(super) fn refused(&mut self, asked: Asked, reason: Reason, now: Instant) -> Scope {
        self.requests += 1;
        self.waiting.retain(|_, waiting| now < waiting.until + FORGOTTEN);
        let pause = self
            .waiting
            .get(&asked)
            .map_or(FIRST_PAUSE, |before| if now < before.until { before.pause } else { before.pause * 2 })
            .min(LONGEST_PAUSE);
        let again = self.waiting.insert(asked, Waiting { until: now + pause, pause }).is_some();
        if reason == Reason::Resource {
            return Scope::Account;
        }
        let another = |(last, request, at): (Asked, u64, Instant)| {
            last != asked && self.requests - request <= TOGETHER && now.duration_since(at) <= LATELY
        };
        let together = self.last.is_some_and(another);
        self.last = Some((asked, self.requests, now));
        match (together, again) {
            (true, _) => Scope::Everybody,
            (false, false) => Scope::Unclear,
            (false, true) => Scope::Account,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[rstest]
    #[case::one_alone(&["a", "a", "a"], 100, Scope::Account)]
    #[case::two_together(&["a", "b"], 100, Scope::Everybody)]
    #[case::one_once(&["a"], 100, Scope::Unclear)]
    #[case::two_far_apart(&["a", "b"], 61_000, Scope::Unclear)]
    #[case::the_same_again(&["a", "b", "b"], 100, Scope::Account)]
    #[case::in_turns(&["a", "b", "a"], 1_900, Scope::Everybody)]
    fn whose_limit_it_was(#[case] refused: &[&str], #[case] apart: u32, #[case] expected: Scope) {
        let (mut refusals, begun) = (Refusals::default(), Instant::now());
        let mut scope = None;
        for (n, name) in (0..).zip(refused) {
            scope = Some(refusals.refused(Asked::new(name), Reason::Rate, begun + MS * apart * n));
        }
        assert_eq!(scope, Some(expected));
    }

    #[rstest]
    #[case(Some("global-rate"), Scope::Everybody)]
    #[case(Some("endpoint-rate"), Scope::Everybody)]
    #[case(Some("global-concurrency"), Scope::Everybody)]
    #[case(Some("endpoint-concurrency"), Scope::Everybody)]
    #[case(Some("something-of-2027"), Scope::Everybody)]
    #[case(None, Scope::Everybody)]
    #[case(Some("resource-specific"), Scope::Account)]
    fn a_reason_is_of_one_account_or_of_anybody(#[case] name: Option<&str>, #[case] expected: Scope) {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        refusals.refused(Asked::new("a"), Reason::named(name), now);
        assert_eq!(refusals.refused(Asked::new("b"), Reason::named(name), now), expected);
    }

    #[test]
    fn a_request_is_for_the_account_that_it_names_or_the_key_it_carries() {
        let asked = |key: &str, account: Option<&str>| {
            let request = crate::http::client().unwrap().get("https://stripe.example/v1").bearer_auth(key);
            Asked::by(&match account {
                Some(account) => request.header("Stripe-Account", account),
                None => request,
            })
        };
        assert_eq!(asked("sk_platform", Some("acct_1")), asked("sk_other", Some("acct_1")));
        assert_ne!(asked("sk_platform", Some("acct_1")), asked("sk_platform", Some("acct_2")));
        assert_ne!(asked("sk_row_1", None), asked("sk_row_2", None));
    }

    #[test]
    fn an_account_waits_twice_as_long_each_time_until_it_is_answered() {
        let (mut refusals, mut now) = (Refusals::default(), Instant::now());
        let (one, other) = (Asked::new("a"), Asked::new("b"));
        for expected in [500, 1_000, 2_000, 4_000, 8_000, 8_000] {
            refusals.refused(one, Reason::Rate, now);
            // Two requests that were under way together are one refusal.
            refusals.refused(one, Reason::Rate, now);
            assert_eq!(refusals.wait(one, now), MS * expected);
            assert_eq!(refusals.wait(other, now), Duration::ZERO);
            now += MS * expected;
            assert_eq!(refusals.wait(one, now), Duration::ZERO);
        }
        refusals.answered(one);
        refusals.refused(one, Reason::Rate, now);
        assert_eq!(refusals.wait(one, now), FIRST_PAUSE);
        refusals.refused(other, Reason::Resource, now + 2 * FORGOTTEN);
        assert_eq!(refusals.waiting.len(), 1, "nobody is kept for ever");
    }
}
