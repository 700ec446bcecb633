//! Decides how fast a provider is asked, from what was answered and what was refused. Pure; see
//! `docs/adr/0017-as-fast-as-stripe-lets-us.md`.
//!
//! As long as nothing was ever refused, the pace doubles. A refusal cuts it at once. Then it rests a little below the
//! refused pace, and from time to time it looks, in growing steps, whether more is allowed by now. A pace is raised only
//! if it was really used: requests that nobody made prove nothing.

use std::{num::NonZeroU32, time::Duration};

use serde::{Deserialize, Serialize};

/// A pace is tried so long before a faster one.
const TRIAL: Duration = Duration::from_secs(2);
/// As long as nothing was ever refused, a little less: a first run is short.
const FIRST_TRIAL: Duration = Duration::from_millis(1_500);
/// A refusal leaves so much of the pace: what the provider saves up meanwhile is its own again.
const CUT: f64 = 0.7;
/// The pace rests at so much of the one that was refused.
const BELOW: f64 = 0.9;
/// After a search the pace rests at so much: a search goes on for a while beyond the limit, on what
/// the provider has saved up.
const BELOW_A_SEARCH: f64 = 0.7;
/// Each step of a search is larger than the one before by so much of the pace.
const STEP: f64 = 0.03;
/// The pace rests until so many requests were answered, so that a search costs less than 1 % of
/// them.
const ANSWERED_AT_REST: f64 = 500.0;
/// A rest is not shorter than this, and not longer than the next one, so that a limit that was
/// lifted is found within a minute.
const SHORTEST_REST: f64 = 20.0;
const LONGEST_REST: f64 = 60.0;
/// Two accounts that are refused alone among so many requests are refused together, whichever processes met them.
const DOUBTED_FOR: f64 = 100.0;
/// A pace was used if at least this part of its turns was answered: the last answers of a trial come after its end.
const USED: f64 = 0.5;

/// Says between which rates the pace moves, and where it begins. Requests a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    start: f64,
    least: f64,
    most: f64,
}

impl Bounds {
    /// Creates bounds that leave the start as it is: it may lie below the least and above the most.
    pub fn new(start: NonZeroU32, least: NonZeroU32, most: NonZeroU32) -> Self {
        let of = |rate: NonZeroU32| f64::from(rate.get());
        Self { start: of(start), least: of(least.min(start)), most: of(most.max(start)) }
    }
}

/// Holds what happened since the pace was set or last looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Window {
    pub(super) lasted: Duration,
    /// Counts the requests of all instances that were answered and not refused.
    pub(super) answered: u32,
}

/// Represents a pace and how it was found.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Pace {
    per_second: f64,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    /// Nothing was ever refused.
    Doubling,
    /// A pace was refused a moment ago; the next one is this.
    Recovering { rest_at: f64 },
    /// The pace is a little below the one that was refused.
    Resting,
    /// One account alone was refused at a pace that rested.
    Doubted,
    /// So many steps were answered, from a pace that had rested without a refusal.
    Searching { steps: u32, from: f64 },
}

impl Pace {
    /// Returns the pace of a first run.
    pub(super) fn first(bounds: &Bounds) -> Self {
        Self { per_second: bounds.start, stage: Stage::Doubling }
    }

    pub(super) fn per_second(&self) -> f64 {
        self.per_second
    }

    pub(super) fn interval(&self) -> Duration {
        Duration::from_secs_f64(1.0 / self.per_second)
    }

    /// Returns the pace after `window` if something is to be stored: a faster one, or the same where the window begins
    /// anew.
    pub(super) fn after(self, window: &Window, bounds: &Bounds) -> Option<Self> {
        let trial = self.trial();
        if window.lasted < trial {
            return None;
        }
        if self.stage == Stage::Doubted {
            return Some(Self { stage: Stage::Resting, ..self });
        }
        if f64::from(window.answered) >= USED * self.per_second * window.lasted.as_secs_f64() {
            return Some(self.faster(bounds));
        }
        (window.lasted > 2 * trial).then_some(self)
    }

    /// Returns the pace after a request of this one was refused.
    pub(super) fn refused(self, bounds: &Bounds) -> Self {
        let refused = self.per_second;
        let rest_at = match self.stage {
            Stage::Searching { from, .. } => from.max(refused * BELOW_A_SEARCH),
            Stage::Doubling | Stage::Recovering { .. } | Stage::Resting | Stage::Doubted => refused * BELOW,
        };
        Self { per_second: refused * CUT, stage: Stage::Recovering { rest_at } }.within(bounds)
    }

    /// Returns the pace after one account alone was refused a request of this one, where that changes something. A search
    /// ends: it would end soon in any case, and nobody is slower afterwards than before it, but for a moment. A pace that
    /// rests is doubted, as fast as it is; a second account that is refused, by whichever process, slows it down. If each
    /// process waited for a second refusal of its own, they would cost more than 1 % where many share few requests.
    pub(super) fn doubted(self, bounds: &Bounds) -> Option<Self> {
        match self.stage {
            Stage::Searching { .. } | Stage::Doubted => Some(self.refused(bounds)),
            Stage::Resting => Some(Self { stage: Stage::Doubted, ..self }),
            Stage::Doubling | Stage::Recovering { .. } => None,
        }
    }

    /// Returns whether this pace is slower than `other`.
    pub(super) fn is_slower_than(&self, other: &Self) -> bool {
        self.per_second < other.per_second
    }

    /// Returns the same pace within the bounds, which may have changed since it was stored.
    pub(super) fn within(self, bounds: &Bounds) -> Self {
        Self { per_second: self.per_second.clamp(bounds.least, bounds.most), ..self }
    }

    fn trial(&self) -> Duration {
        match self.stage {
            Stage::Doubling => FIRST_TRIAL,
            Stage::Recovering { .. } | Stage::Searching { .. } => TRIAL,
            Stage::Doubted => Duration::from_secs_f64((DOUBTED_FOR / self.per_second).min(LONGEST_REST)),
            Stage::Resting => {
                let rest = (ANSWERED_AT_REST / self.per_second).clamp(SHORTEST_REST, LONGEST_REST);
                Duration::from_secs_f64(rest)
            }
        }
    }

    fn faster(self, bounds: &Bounds) -> Self {
        let step = |steps: u32, from: f64| {
            let factor = (STEP * f64::from(steps)).min(1.0);
            Self { per_second: self.per_second * (1.0 + factor), stage: Stage::Searching { steps, from } }
        };
        let faster = match self.stage {
            Stage::Doubling => Self { per_second: self.per_second * 2.0, ..self },
            Stage::Recovering { rest_at } => Self { per_second: rest_at, stage: Stage::Resting },
            Stage::Resting | Stage::Doubted => step(1, self.per_second),
            Stage::Searching { steps, from } => step(steps.saturating_add(1), from),
        }
        .within(bounds);
        // At the upper bound only the window begins anew: nobody has to be told of another pace.
        let same = faster.per_second.total_cmp(&self.per_second).is_eq();
        if same && !matches!(self.stage, Stage::Recovering { .. }) { self } else { faster }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const BOUNDS: Bounds = Bounds { start: 20.0, least: 5.0, most: 500.0 };

    fn pace(per_second: f64, stage: Stage) -> Pace {
        Pace { per_second, stage }
    }

    fn window(seconds: u64, answered: u32) -> Window {
        Window { lasted: Duration::from_secs(seconds), answered }
    }

    #[rstest]
    #[case::doubles(pace(20.0, Stage::Doubling), 2, 36, Some(pace(40.0, Stage::Doubling)))]
    #[case::is_tried_first(pace(20.0, Stage::Doubling), 1, 20, None)]
    #[case::may_yet_be_used(pace(20.0, Stage::Doubling), 3, 20, None)]
    #[case::was_not_used(pace(20.0, Stage::Doubling), 5, 40, Some(pace(20.0, Stage::Doubling)))]
    #[case::ends_at_the_bound(pace(300.0, Stage::Doubling), 2, 500, Some(pace(500.0, Stage::Doubling)))]
    #[case::stays_at_the_bound(pace(500.0, Stage::Doubling), 2, 900, Some(pace(500.0, Stage::Doubling)))]
    #[case::comes_back(pace(70.0, Stage::Recovering { rest_at: 90.0 }), 2, 130, Some(pace(90.0, Stage::Resting)))]
    #[case::rests(pace(90.0, Stage::Resting), 19, 1_600, None)]
    #[case::looks(pace(100.0, Stage::Resting), 20, 1_900, Some(pace(103.0, Stage::Searching { steps: 1, from: 100.0 })))]
    #[case::looks_further(pace(100.0, Stage::Searching { steps: 1, from: 97.0 }), 2, 180, Some(pace(106.0, Stage::Searching { steps: 2, from: 97.0 })))]
    #[case::is_doubted(pace(50.0, Stage::Doubted), 1, 50, None)]
    #[case::is_doubted_no_more(pace(50.0, Stage::Doubted), 2, 0, Some(pace(50.0, Stage::Resting)))]
    #[case::rests_longer_where_it_is_slow(pace(5.0, Stage::Resting), 59, 290, None)]
    fn a_pace(#[case] now: Pace, #[case] seconds: u64, #[case] answered: u32, #[case] then: Option<Pace>) {
        assert_eq!(now.after(&window(seconds, answered), &BOUNDS), then);
    }

    #[rstest]
    #[case(100.0, 70.0)]
    #[case(6.0, 5.0)]
    #[case(5.0, 5.0)]
    fn a_refusal_cuts_down_to_the_least(#[case] before: f64, #[case] after: f64) {
        let refused = Stage::Recovering { rest_at: before * BELOW };
        assert_eq!(pace(before, Stage::Resting).refused(&BOUNDS), pace(after, refused));
    }

    #[rstest]
    #[case::no_lower_than_where_it_began(100.0, 90.0)]
    #[case::far_above_it(200.0, 140.0)]
    fn after_a_search_it_rests_well_below(#[case] refused: f64, #[case] rests: f64) {
        let search = pace(refused, Stage::Searching { steps: 4, from: 90.0 }).refused(&BOUNDS);
        assert_eq!(search.stage, Stage::Recovering { rest_at: rests });
    }

    #[test]
    fn one_account_alone_ends_a_search_and_slows_no_other_pace_down() {
        let search = pace(100.0, Stage::Searching { steps: 2, from: 92.0 });
        assert_eq!(search.doubted(&BOUNDS), Some(search.refused(&BOUNDS)));
        for stage in [Stage::Doubling, Stage::Recovering { rest_at: 95.5 }] {
            assert_eq!(pace(100.0, stage).doubted(&BOUNDS), None);
        }
        let doubted = pace(100.0, Stage::Resting).doubted(&BOUNDS).unwrap();
        assert_eq!(doubted, pace(100.0, Stage::Doubted));
        assert_eq!(doubted.doubted(&BOUNDS), Some(pace(100.0, Stage::Resting).refused(&BOUNDS)));
    }

    #[rstest]
    #[case(20, 5, 500, 20.0)]
    #[case(2, 5, 500, 2.0)]
    #[case(1000, 5, 500, 1000.0)]
    fn the_start_is_never_cut(#[case] start: u32, #[case] least: u32, #[case] most: u32, #[case] first: f64) {
        let [start, least, most] = [start, least, most].map(|rate| NonZeroU32::new(rate).unwrap());
        let bounds = Bounds::new(start, least, most);
        let pace = Pace::first(&bounds);
        assert_eq!(pace, pace.within(&bounds));
        assert!((pace.per_second() - first).abs() < 1e-9);
    }

    #[test]
    fn a_step_never_more_than_doubles() {
        let search = pace(10.0, Stage::Searching { steps: u32::MAX, from: 9.0 });
        let next = search.after(&window(2, 20), &BOUNDS).unwrap();
        assert!((next.per_second() - 20.0).abs() < 1e-9);
    }

    #[rstest]
    #[case(900.0, 500.0)]
    #[case(-1.0, 5.0)]
    fn what_was_stored_under_other_bounds_keeps_to_these(#[case] stored: f64, #[case] kept: f64) {
        assert_eq!(pace(stored, Stage::Resting).within(&BOUNDS), pace(kept, Stage::Resting));
    }

    #[test]
    fn what_is_stored_is_read_again() {
        for stage in [
            Stage::Doubling,
            Stage::Recovering { rest_at: 95.5 },
            Stage::Doubted,
            Stage::Searching { steps: 3, from: 61.0 },
        ] {
            let pace = pace(66.85, stage);
            assert_eq!(serde_json::from_value::<Pace>(serde_json::to_value(pace).unwrap()).unwrap(), pace);
        }
    }
}
