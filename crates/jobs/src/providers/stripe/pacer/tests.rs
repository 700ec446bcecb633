//! Simulates Stripe's limits and any number of instances on tokio's own clock.

use std::{num::NonZeroU32, time::Duration};

use proptest::{prelude::*, test_runner::Config};
use reqwest::{StatusCode, header::HeaderMap};
use rstest::rstest;
use tokio::{task::JoinSet, time::sleep};

use super::*;
use crate::{http::Answer, pace::tests::Row, providers::stripe::answer};

const ROUND_TRIP: Duration = Duration::from_millis(160);
/// So many items are under way in each instance.
const AT_ONCE: usize = 32;

/// Stands for Stripe's limit: a bucket, of so many seconds' requests.
struct Limit {
    per_second: f64,
    seconds: f64,
    level: f64,
    at: Instant,
}

impl Limit {
    fn take(&mut self) -> bool {
        let now = Instant::now();
        let most = (self.per_second * self.seconds).max(1.0);
        self.level = (self.level + (now - self.at).as_secs_f64() * self.per_second).min(most);
        self.at = now;
        let enough = self.level >= 1.0;
        self.level -= f64::from(u8::from(enough));
        enough
    }
}

/// Holds when each request was made, from the beginning, and whether it was answered.
type Log = Vec<(Duration, bool)>;

/// Plays `seconds` of as many requests as the pace allows; the limits follow one another at these seconds.
fn play(limits: &[(u64, f64)], bucket_seconds: f64, instances: usize, seconds: u64) -> Log {
    play_generations(limits, bucket_seconds, &[(instances, 0, seconds)])
}

/// Plays so many instances from one second to another each; then they are gone, with all turns that they have leased.
fn play_generations(limits: &[(u64, f64)], bucket_seconds: f64, generations: &[(usize, u64, u64)]) -> Log {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let begun = Instant::now();
        let per_second = limits[0].1;
        let limit = Limit { per_second, seconds: bucket_seconds, level: f64::MAX, at: begun };
        let limit = Arc::new(Mutex::new(limit));
        let (row, log) = (Arc::new(Mutex::new(Row::new())), Arc::new(Mutex::new(Log::new())));
        let mut work = JoinSet::new();
        for (generation, &(instances, from, to)) in generations.iter().enumerate() {
            let [from, end] = [from, to].map(|second| begun + Duration::from_secs(second));
            for instance in 0..instances {
                let pacer = learning(&row);
                for worker in 0..AT_ONCE {
                    let (pacer, limit, log) = (pacer.clone(), limit.clone(), log.clone());
                    work.spawn(async move {
                        tokio::time::sleep_until(from).await;
                        let deadline = Deadline::new(end, end);
                        for request in 0.. {
                            // An account has a few pages.
                            let account = format!("{generation}/{instance}/{worker}/{}", request / 4);
                            let Ok(turn) = pacer.turn(Asked::new(&account), &deadline).await else { return };
                            let answered = limit.lock().unwrap().take();
                            log.lock().unwrap().push((begun.elapsed(), answered));
                            sleep(ROUND_TRIP).await;
                            if answered {
                                pacer.answered(turn);
                            } else {
                                pacer.refused(turn, Reason::Rate, &deadline).await;
                            }
                        }
                    });
                }
            }
        }
        for (at, per_second) in &limits[1..] {
            tokio::time::sleep_until(begun + Duration::from_secs(*at)).await;
            limit.lock().unwrap().per_second = *per_second;
        }
        work.join_all().await;
        std::mem::take(&mut *log.lock().unwrap())
    })
}

/// Creates a process's pacer that knows nothing yet, over what all have learned.
fn learning(row: &Arc<Mutex<Row>>) -> Pacer {
    let [start, least, most] = [20, 5, 500].map(|rate| NonZeroU32::new(rate).unwrap());
    Pacer::over(LearnedPace::simulated(row, Bounds::new(start, least, most)))
}

/// Returns how many requests were answered a second between these seconds, and which part was refused.
fn between(log: &[(Duration, bool)], from: u64, to: u64) -> (f64, f64) {
    let seconds = Duration::from_secs(from)..Duration::from_secs(to);
    let made = log.iter().filter(|(at, _)| seconds.contains(at));
    let (all, answered) = made.fold((0_u32, 0_u32), |(all, sum), (_, ok)| (all + 1, sum + u32::from(*ok)));
    (
        f64::from(answered) / Duration::from_secs(to - from).as_secs_f64(),
        f64::from(all - answered) / f64::from(all),
    )
}

proptest! {
    #![proptest_config(Config::with_cases(8))]

    /// Whatever the limit and however much of it Stripe saves up: after a minute, next to nothing is refused and most
    /// of what is allowed is used, by any number of instances together.
    #[test]
    fn any_limit_is_found_and_kept(
        limit in 8.0..300.0_f64,
        bucket_seconds in 0.05..2.0_f64,
        instances in 1..9_usize,
    ) {
        let log = play(&[(0, limit)], bucket_seconds, instances, 180);
        let (answered, refused) = between(&log, 60, 180);
        let network = f64::from(u32::try_from(instances * AT_ONCE).unwrap()) / ROUND_TRIP.as_secs_f64();
        prop_assert!(refused <= 0.01, "{refused} refused");
        prop_assert!(answered >= 0.6 * limit.min(network), "{answered} of {limit} a second");
    }

    /// A limit falls and rises again: what is allowed is used within a minute, and that costs little.
    #[test]
    fn a_changed_limit_is_found_within_a_minute(
        before in 60.0..150.0_f64,
        part in 0.25..0.6_f64,
        bucket_seconds in 0.2..1.25_f64,
        instances in 1..5_usize,
    ) {
        let low = before * part;
        let log = play(&[(0, before), (60, low), (150, before)], bucket_seconds, instances, 240);
        for (from, to, limit) in [(120, 150, low), (210, 240, before)] {
            let (answered, _) = between(&log, from, to);
            prop_assert!(answered >= 0.6 * limit, "{answered} of {limit} a second from {from} s on");
        }
        let (_, refused) = between(&log, 60, 240);
        prop_assert!(refused <= 0.04, "{refused} refused");
    }
}

/// Where searches are dear: the slower the pace and the more instances, the more of the few requests are refused before all
/// know that one was. The first one was refused 1.06 % once.
#[rstest]
#[case(8.0, 0.2, 5)]
#[case(8.0, 0.05, 8)]
#[case(8.0, 2.0, 5)]
#[case(12.21, 0.05, 7)]
#[case(15.26, 0.05, 8)]
#[case(19.07, 0.8, 5)]
#[case(25.0, 1.0, 8)]
#[case(100.0, 2.0, 8)]
fn the_edges_are_kept(#[case] limit: f64, #[case] bucket_seconds: f64, #[case] instances: usize) {
    let log = play(&[(0, limit)], bucket_seconds, instances, 180);
    let (_, refused) = between(&log, 60, 180);
    assert!(refused <= 0.01, "{refused} refused");
}

/// Three processes die with their turns, and one that knows nothing begins: it goes on with what they have learned.
#[rstest]
#[case(25.0)]
#[case(100.0)]
fn who_comes_later_goes_on_where_others_died(#[case] limit: f64) {
    let log = play_generations(&[(0, limit)], 1.0, &[(3, 0, 70), (1, 70, 130)]);
    let (answered, refused) = between(&log, 70, 130);
    assert!(refused <= 0.01, "{refused} refused");
    assert!(answered >= 0.8 * limit, "{answered} of {limit} a second");
    let first = log.iter().find(|(at, _)| *at >= Duration::from_secs(70)).unwrap().0;
    assert!(
        first <= Duration::from_millis(71_500),
        "it waits for no more than what three have leased: {first:?}"
    );
}

/// Plays what Stripe says to two requests, of one account or of two; returns how long twenty turns take then.
async fn after_two(
    accounts: [&str; 2],
    reason: Option<&str>,
    code: &str,
    retry_after: Option<&str>,
) -> Duration {
    let pacer = learning(&Arc::new(Mutex::new(Row::new())));
    let end = Instant::now() + Duration::from_mins(10);
    let deadline = Deadline::new(end, end);
    for account in accounts {
        let turn = pacer.turn(Asked::new(account), &deadline).await.unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in [("stripe-rate-limited-reason", reason), ("retry-after", retry_after)] {
            if let Some(value) = value {
                headers.insert(name, value.parse().unwrap());
            }
        }
        let body = format!(r#"{{"error": {{"type": "invalid_request_error", "code": "{code}"}}}}"#);
        let refusal = Answer { status: StatusCode::TOO_MANY_REQUESTS, headers, body: body.into_bytes() };
        let reason = Reason::of(&refusal);
        let checked = answer::check(refusal, answer::Key::Platform).map(drop);
        let told = checked.as_ref().unwrap_err().retry_after();
        assert_eq!(told, retry_after.map(|seconds| Duration::from_secs(seconds.parse().unwrap())));
        pacer.heard(turn, reason, &checked, &deadline).await;
    }
    let begun = Instant::now();
    for n in 0..20 {
        pacer.turn(Asked::new(&format!("other {n}")), &deadline).await.unwrap();
    }
    begun.elapsed()
}

/// What is documented (<https://docs.stripe.com/rate-limits>), what may come, and what comes without a name. Who is told
/// how long to wait repeats the request then; the pace is no other for it.
#[rstest]
#[case(Some("global-rate"), "rate_limit", true)]
#[case(Some("global-concurrency"), "rate_limit", true)]
#[case(Some("endpoint-rate"), "rate_limit", true)]
#[case(Some("endpoint-concurrency"), "rate_limit", true)]
#[case(Some("a-reason-of-2027"), "rate_limit", true)]
#[case(None, "rate_limit", true)]
#[case(Some("resource-specific"), "rate_limit", false)]
#[case(None, "lock_timeout", false)]
#[tokio::test(start_paused = true)]
async fn who_is_slower_after_a_refusal(
    #[case] reason: Option<&str>,
    #[case] code: &str,
    #[case] everybody: bool,
    #[values(None, Some("7"))] retry_after: Option<&str>,
) {
    let two = after_two(["acct_1", "acct_2"], reason, code, retry_after).await;
    assert_eq!(two >= Duration::from_millis(1_200), everybody, "{two:?} for twenty turns");
    let one = after_two(["acct_1", "acct_1"], reason, code, retry_after).await;
    assert!(
        one <= Duration::from_millis(1_100),
        "{one:?} for twenty turns of 50 ms: one account slows nobody down"
    );
}

/// An account whose owner uses up its limit ends one search; after that the search for a faster pace goes on beside it.
#[tokio::test(start_paused = true)]
async fn an_account_that_is_always_refused_hides_no_faster_pace() {
    let (mut refusals, mut now, busy) = (Refusals::default(), Instant::now(), Asked::new("acct_busy"));
    assert_eq!(refusals.refused(busy, Reason::Rate, now), Scope::Unclear);
    for _ in 0..100 {
        now += refusals.wait(busy, now);
        assert_eq!(refusals.refused(busy, Reason::Rate, now), Scope::Account);
    }
}

#[test]
fn where_nothing_is_refused_only_the_network_bounds_the_pace() {
    let log = play(&[(0, 1e9)], 1.0, 1, 30);
    let (answered, _) = between(&log, 20, 30);
    assert!(answered > 190.0, "32 at once, 160 ms each, are 200 a second, not {answered}");
}

/// A first run makes as many requests as 500 accounts of three pages: it finds the limit on its
/// way.
#[test]
fn a_first_run_is_within_a_quarter_of_what_stripe_allows() {
    const REQUESTS: usize = 2_000;
    let log = play(&[(0, 100.0)], 1.0, 1, 60);
    let mut answered = log.iter().filter(|(_, answered)| *answered);
    let took = answered.nth(REQUESTS - 1).map(|(at, _)| *at);
    assert!(took.is_some_and(|took| took <= Duration::from_secs(25)), "{took:?}, and 20 s are the bound");
}

/// The owner's own programs leave nothing of an account's limit: the others go on as fast as ever.
#[tokio::test(start_paused = true)]
async fn an_account_that_is_refused_alone_waits_alone() {
    let pacer = Pacer::alone(NonZeroU32::new(20).unwrap());
    let end = Instant::now() + Duration::from_mins(10);
    let (deadline, one) = (Deadline::new(end, end), Asked::new("acct_busy"));
    for pause in [500, 1_000, 2_000] {
        let turn = pacer.turn(one, &deadline).await.unwrap();
        pacer.refused(turn, Reason::Rate, &deadline).await;
        let refused = Instant::now();
        for n in 0..9 {
            pacer.turn(Asked::new(&n.to_string()), &deadline).await.unwrap();
        }
        assert!(refused.elapsed() <= Duration::from_millis(460), "nine turns of 50 ms");
        pacer.turn(one, &deadline).await.unwrap();
        assert!(refused.elapsed() >= Duration::from_millis(pause));
    }
}

#[tokio::test(start_paused = true)]
async fn clones_share_one_pace_and_respect_the_deadline() {
    let (pacer, now) = (Pacer::alone(NonZeroU32::new(20).unwrap()), Instant::now());
    let (far, one) =
        (Deadline::new(now + Duration::from_mins(1), now + Duration::from_mins(1)), Asked::new("a"));
    for _ in 0..21 {
        pacer.clone().turn(one, &far).await.unwrap();
    }
    assert_eq!(now.elapsed().as_millis() / 10, 100, "twenty intervals of 50 ms");
    let over = Deadline::new(now, now);
    assert_eq!(pacer.clone().turn(one, &over).await.unwrap_err(), OutOfTime);
    pacer.turn(one, &far).await.unwrap();
}
