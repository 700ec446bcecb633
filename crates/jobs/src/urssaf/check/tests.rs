//! Reads a year's mails as their user does: whatever happens to the books, no mail contradicts an earlier one that was not
//! taken back, and what is true in the end does not depend on what came first.

use proptest::prelude::*;

use super::super::books::{BookRow, YearBooks};
use super::super::verdict::{Micro, State, Vat, Verdict};
use super::*;

const ACTIVITIES: [&str; 4] =
    ["Vente de marchandises", "Prestation de services", "Activité libérale", "mixte"];
const YEAR: i32 = 2026;

/// Represents something told, and whether a mail has taken it back.
#[derive(Clone)]
struct Noted<T> {
    told: ToldInYear<T>,
    is_unsaid: bool,
}

/// A user, as the database remembers them, and what their mails have made them believe.
#[derive(Default)]
struct Reader {
    told: Vec<Noted<Told>>,
    followed: Vec<Noted<ToldConsequence>>,
    /// Holds, of the last mail that told of VAT and of the micro regime, how far it went: see [`vat`] and [`micro`].
    believes: [Option<u8>; 2],
    mails: usize,
}

/// Says how far a year has gone: 0 free, 1 above the base threshold, 2 due.
fn vat(verdict: &Verdict) -> u8 {
    match verdict.vat {
        Vat::Free { .. } => 0,
        Vat::Next { .. } => 1,
        Vat::Since { .. } | Vat::SinceNewYear { .. } | Vat::SinceYearBefore { .. } => 2,
    }
}

/// Says how far a year has gone: 0 within, 1 above a ceiling once, 2 out or soon.
fn micro(verdict: &Verdict) -> u8 {
    match verdict.micro {
        Micro::Within { .. } => 0,
        Micro::Once { .. } => 1,
        Micro::Twice { .. } | Micro::Out { .. } => 2,
    }
}

impl Reader {
    fn check(&mut self, books: &UserBooks) -> State {
        let told: Vec<_> = self.told.iter().map(|noted| noted.told.clone()).collect();
        let followed: Vec<_> = self.followed.iter().map(|noted| noted.told.clone()).collect();
        let today = NaiveDate::from_ymd_opt(YEAR, 12, 31).unwrap();
        let found = check(books, &told, &followed, &[YEAR], today, true).remove(0);
        self.write_down(&found);
        if found.is_mail() {
            self.mails += 1;
            self.read(&found);
        }
        found.assessment.state
    }

    /// Does as `jobs_plan_alerts` does.
    fn write_down(&mut self, found: &YearCheck) {
        for turned in &found.assessment.turned {
            let noted = self.told.iter_mut().find(|noted| noted.told.told.telling == turned.telling).unwrap();
            assert_eq!(noted.told.told, *turned);
            noted.told.told.withdrawn = !turned.withdrawn;
            noted.is_unsaid &= !turned.withdrawn;
        }
        for telling in &found.assessment.tell {
            if let Some(noted) = self.told.iter_mut().find(|noted| noted.told.told.telling == *telling) {
                assert!(noted.told.told.withdrawn && noted.told.told.times == 1, "told a third time");
                noted.told.told = Told { telling: *telling, times: 2, withdrawn: false };
                noted.is_unsaid = false;
            } else {
                let told = Told { telling: *telling, times: 1, withdrawn: false };
                self.told.push(Noted { told: ToldInYear { year: YEAR, told }, is_unsaid: false });
            }
        }
        for turned in &found.consequences.turned {
            let mut all = self.followed.iter_mut();
            let noted = all.find(|noted| noted.told.told.consequence == turned.consequence).unwrap();
            assert_eq!(noted.told.told, *turned);
            noted.told.told.withdrawn = !turned.withdrawn;
            noted.is_unsaid &= !turned.withdrawn;
        }
        for consequence in &found.consequences.tell {
            let mut all = self.followed.iter_mut();
            if let Some(noted) = all.find(|noted| noted.told.told.consequence == *consequence) {
                assert!(noted.told.told.withdrawn && noted.told.told.times == 1, "told a third time");
                noted.told.told.withdrawn = false;
                noted.told.told.times = 2;
                noted.is_unsaid = false;
            } else {
                let told = ToldConsequence { consequence: *consequence, times: 1, withdrawn: false };
                self.followed.push(Noted { told: ToldInYear { year: YEAR, told }, is_unsaid: false });
            }
        }
    }

    /// Reads a mail: what was said to be due, or left, still is, or is taken back. A ceiling may swing.
    fn read(&mut self, found: &YearCheck) {
        let State { certain, if_distinct, .. } = &found.assessment.state;
        let perhaps = if_distinct.as_ref().unwrap_or(certain);
        for (is_vat, says, at_most) in
            [(true, vat(certain), vat(perhaps)), (false, micro(certain), micro(perhaps))]
        {
            let has_block = found.assessment.crossings.iter().any(|one| one.threshold.is_vat() == is_vat)
                || found.alone().iter().any(|one| one.is_vat() == is_vat);
            let steps = self.told.iter().any(|noted| {
                let Told { telling, withdrawn, .. } = noted.told.told;
                withdrawn && !noted.is_unsaid && telling.step == 100 && telling.threshold.is_vat() == is_vat
            });
            let consequences = self.followed.iter().any(|noted| {
                let ToldConsequence { consequence, withdrawn, .. } = noted.told.told;
                withdrawn && !noted.is_unsaid && consequence.is_vat() == is_vat
            });
            if !has_block {
                // What is taken back is not believed any more.
                if steps || consequences {
                    self.believes[usize::from(is_vat)] = None;
                }
                continue;
            }
            let believed = self.believes[usize::from(is_vat)].unwrap_or_default();
            assert!(
                believed < 2 || at_most >= believed || steps || consequences,
                "said {believed} before, and {says} now, of {}: {found:#?}",
                if is_vat { "VAT" } else { "the micro regime" }
            );
            self.believes[usize::from(is_vat)] = Some(says);
        }
        self.told.iter_mut().for_each(|noted| noted.is_unsaid |= noted.told.told.withdrawn);
        self.followed.iter_mut().for_each(|noted| noted.is_unsaid |= noted.told.told.withdrawn);
    }

    /// Returns whether what the mails have said last of each regime, and what they were to take back, is what is.
    fn knows(&self, state: &State) -> bool {
        let knows = |is_vat: bool, is: u8| {
            let believed = self.believes[usize::from(is_vat)].unwrap_or_default();
            // Less than what was said is taken back by the next mail of any kind, or is a swing.
            believed >= is
        };
        knows(true, vat(&state.certain)) && knows(false, micro(&state.certain))
    }
}

/// What happens to somebody's books.
#[derive(Clone, Debug)]
enum Event {
    /// Turnover is typed or imported: year, month, activity, cents.
    Arrives(i32, u32, usize, i64, bool),
    /// The row is about another activity (an assumed one that was said, a typing mistake).
    Moves(usize, usize),
    /// The row has another amount.
    Corrected(usize, i64),
    /// Months with both sides are confirmed as distinct; or the answer is taken back.
    Confirmed(bool),
    /// The day on which the activity began is typed.
    Began(Option<u32>),
}

#[derive(Clone, Default)]
struct Books {
    rows: Vec<(i32, BookRow)>,
    is_distinct: bool,
    created: Option<NaiveDate>,
}

impl Books {
    fn after(&mut self, event: &Event) {
        match *event {
            Event::Arrives(year, month, activity, cents, is_typed) => {
                let (typed, imported) = if is_typed { (cents, 0) } else { (0, cents) };
                let activity = ACTIVITIES[activity].to_owned();
                self.rows.push((year, BookRow { month, activity, typed, imported, mixed: false }));
            }
            Event::Moves(row, activity) => {
                let place = row % self.rows.len().max(1);
                if let Some((_, row)) = self.rows.get_mut(place) {
                    ACTIVITIES[activity].clone_into(&mut row.activity);
                }
            }
            Event::Corrected(row, cents) => {
                let place = row % self.rows.len().max(1);
                if let Some((_, row)) = self.rows.get_mut(place) {
                    let side = if row.typed == 0 { &mut row.imported } else { &mut row.typed };
                    *side = cents;
                }
            }
            Event::Confirmed(is_distinct) => self.is_distinct = is_distinct,
            Event::Began(day) => self.created = day.and_then(|day| NaiveDate::from_yo_opt(YEAR, day)),
        }
    }

    fn read(&self) -> UserBooks {
        let mut years: Vec<YearBooks> =
            [2024, 2025, YEAR].map(|year| YearBooks { year, rows: Vec::new() }).into();
        for (year, row) in &self.rows {
            let of_month = || self.rows.iter().filter(|other| (other.0, other.1.month) == (*year, row.month));
            let mixed = !self.is_distinct
                && of_month().any(|other| other.1.typed != 0)
                && of_month().any(|other| other.1.imported != 0);
            let books = years.iter_mut().find(|books| books.year == *year).unwrap();
            books.rows.push(BookRow { mixed, ..row.clone() });
        }
        years.retain(|books| !books.rows.is_empty());
        UserBooks { years, created: self.created, days: Vec::new() }
    }
}

fn any_arrival(cents: std::ops::Range<i64>) -> impl Strategy<Value = Event> {
    let year = prop_oneof![4 => Just(YEAR), 1 => 2024..YEAR];
    (year, 1_u32..=12, 0..ACTIVITIES.len(), cents, any::<bool>()).prop_map(
        |(year, month, activity, cents, is_typed)| Event::Arrives(year, month, activity, cents, is_typed),
    )
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        5 => any_arrival(-1_000_000..9_000_000),
        3 => (any::<usize>(), 0..ACTIVITIES.len()).prop_map(|(row, activity)| Event::Moves(row, activity)),
        3 => (any::<usize>(), -1_000_000_i64..22_000_000).prop_map(|(row, cents)| Event::Corrected(row, cents)),
        1 => any::<bool>().prop_map(Event::Confirmed),
        1 => prop::option::of(1_u32..=365).prop_map(Event::Began),
    ]
}

proptest! {
    /// [`Reader::read`] asserts that no mail contradicts an earlier one, [`Reader::write_down`] that nothing is told a third
    /// time. A second check finds nothing.
    #[test]
    fn no_two_mails_of_a_year_contradict_each_other(events in prop::collection::vec(any_event(), 1..25)) {
        let (mut reader, mut books) = (Reader::default(), Books::default());
        for event in &events {
            books.after(event);
            reader.check(&books.read());
            let mails = reader.mails;
            reader.check(&books.read());
            prop_assert_eq!(reader.mails, mails, "a check that is repeated mails nothing");
        }
    }

    /// Turnover that only arrives, in whatever order, leads to the same state; and its user has read as much.
    #[test]
    fn the_order_of_arrival_changes_nothing_in_the_end(
        arrivals in prop::collection::vec(any_arrival(0..9_000_000), 1..10).prop_flat_map(|arrivals| {
            (Just(arrivals.clone()), Just(arrivals).prop_shuffle())
        }),
    ) {
        let tell = |arrivals: &[Event]| {
            let (mut reader, mut books, mut state) = (Reader::default(), Books::default(), None);
            for event in arrivals {
                books.after(event);
                state = Some(reader.check(&books.read()));
            }
            (state.unwrap(), reader)
        };
        let ((one, reader), (other, another)) = (tell(&arrivals.0), tell(&arrivals.1));
        prop_assert_eq!(one, other);
        prop_assert!(reader.knows(&one) && another.knows(&one), "{one:?}");
    }
}
