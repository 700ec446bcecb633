//! What was told and what is: once, again after a correction, and never a third time.

use super::*;

fn telling(threshold: Threshold, step: u8, told_as: ToldAs) -> Telling {
    Telling { threshold, step, told_as }
}

fn certain(threshold: Threshold, step: u8) -> Told {
    Told { telling: telling(threshold, step, ToldAs::Certain), times: 1, withdrawn: false }
}

/// A user who is told, as the database remembers it.
#[derive(Default)]
struct Reader {
    told: Vec<Told>,
    mails: Vec<Mail>,
}

/// What a mail shows (threshold, step, to be verified), and what follows.
struct Mail {
    shown: Vec<(Threshold, u8, bool)>,
    state: State,
}

impl Reader {
    /// Checks books, and writes down what the database would.
    fn check(&mut self, books: &UserBooks) -> Assessment {
        let found = found(books, &self.told);
        for turned in &found.turned {
            let told = self.told.iter_mut().find(|told| told.telling == turned.telling).unwrap();
            assert_eq!(told.withdrawn, turned.withdrawn, "turned twice: {told:?}");
            assert!(!told.withdrawn || told.times == 2, "holds again, and may be told: {told:?}");
            told.withdrawn = !told.withdrawn;
        }
        for telling in &found.tell {
            match self.told.iter_mut().find(|told| told.telling == *telling) {
                Some(told) => {
                    assert!(told.withdrawn && told.times == 1, "told of again: {told:?}");
                    (told.withdrawn, told.times) = (false, 2);
                }
                None => self.told.push(Told { telling: *telling, times: 1, withdrawn: false }),
            }
        }
        if !found.crossings.is_empty() {
            let shown = found.crossings.iter();
            let shown = shown.map(|told| (told.threshold, told.step, told.doubt.is_some())).collect();
            self.mails.push(Mail { shown, state: found.state });
        }
        found
    }

    fn check_typed(&mut self, cents: i64) -> usize {
        self.check(&books(typed(3, &[(SALES, cents)]), None)).crossings.len()
    }
}

#[rstest]
#[case(&[], &[80, 90, 100])]
#[case(&[80], &[90, 100])]
#[case(&[90], &[80, 100])]
#[case(&[80, 90], &[100])]
// Told of already, and with it everything below.
#[case(&[100], &[])]
#[case(&[80, 90, 100], &[])]
fn a_step_uses_up_itself_and_those_below(#[case] held: &[u8], #[case] used_up: &[u8]) {
    let held: Vec<Told> = held.iter().map(|&step| certain(VatBaseTotal, step)).collect();
    let assessment = found(&books(typed(3, &[(SALES, 8_500_001)]), None), &held);
    let tell: Vec<u8> = assessment.tell.iter().map(|told| told.step).collect();
    assert_eq!(tell, used_up);
    let shown: Vec<u8> = assessment.crossings.iter().map(|crossing| crossing.step).collect();
    assert_eq!(shown, if used_up.is_empty() { vec![] } else { vec![100] });
}

#[test]
fn a_lower_step_is_not_told_of_after_a_higher_one() {
    // A refund has brought the year back under the ceiling, and not below the step under it.
    let assessment = found(&books(typed(3, &[(SALES, 8_000_000)]), None), &[certain(VatBaseTotal, 100)]);
    assert_eq!((assessment.tell, assessment.turned), (vec![], vec![]));
}

#[test]
fn one_threshold_s_steps_are_no_other_s() {
    let assessment = found(&books(typed(3, &[(SERVICES, 6_800_000)]), None), &[certain(VatBaseServices, 80)]);
    let expected = [(MicroServices, 80), (VatBaseServices, 100), (VatIncreasedServices, 100)];
    assert_eq!(steps(&assessment), expected);
    let total = found(&books(typed(3, &[(SALES, 8_600_000)]), None), &[certain(VatBaseServices, 100)]);
    assert_eq!(steps(&total), [(VatBaseTotal, 100)]);
}

/// A step of all turnover that the services' line covered was never said: it is told once it is not covered any more.
#[rstest]
#[case(VatBaseTotal, 8_600_000)]
#[case(MicroTotal, 20_400_000)]
fn services_that_turn_out_to_be_sales_are_told_of(#[case] total: Threshold, #[case] cents: i64) {
    let mut reader = Reader::default();
    let of = |activity| books(typed(3, &[(activity, cents)]), None);
    let shown = |reader: &Reader| -> Vec<Threshold> {
        reader.mails.last().unwrap().shown.iter().map(|shown| shown.0).collect()
    };
    reader.check(&of(SERVICES));
    assert!(!shown(&reader).contains(&total), "the services' line says more");
    reader.check(&of(SALES));
    assert!(shown(&reader).contains(&total), "{:?}", shown(&reader));
    // Back and forth: services a second time, after that nothing, and all turnover never again.
    reader.check(&of(SERVICES));
    assert!(!shown(&reader).contains(&total));
    let mails = reader.mails.len();
    for activity in [SALES, LIBERAL, SALES, SERVICES] {
        reader.check(&of(activity));
    }
    assert_eq!((mails, reader.mails.len()), (3, 3));
}

#[rstest]
#[case(VatBaseTotal, 100, 7_650_000, false)]
#[case(VatBaseTotal, 100, 7_649_999, true)]
#[case(VatBaseTotal, 90, 6_800_000, false)]
#[case(VatBaseTotal, 90, 6_799_999, true)]
#[case(VatBaseTotal, 80, 6_800_000, false)]
#[case(VatBaseTotal, 80, 6_799_999, true)]
// It has one step: 80 % of 93 500 € are 74 800 €.
#[case(VatIncreasedTotal, 100, 7_480_000, false)]
#[case(VatIncreasedTotal, 100, 7_479_999, true)]
fn a_step_is_withdrawn_below_the_step_under_it(
    #[case] threshold: Threshold,
    #[case] step: u8,
    #[case] cents: i64,
    #[case] gone: bool,
) {
    let told = certain(threshold, step);
    let assessment = found(&books(typed(3, &[(SALES, cents)]), None), &[told]);
    assert_eq!(assessment.turned, if gone { vec![told] } else { vec![] });
}

#[test]
fn a_typing_mistake_that_is_corrected_is_told_of_once_more_and_no_third_time() {
    let mut reader = Reader::default();
    assert_eq!(reader.check_typed(80_000_000), 3, "base, increased and micro: 800 000 for 8 000");
    assert_eq!(reader.check_typed(800_000), 0);
    assert!(reader.told.iter().all(|told| told.withdrawn));
    assert_eq!(reader.check_typed(8_600_000), 1, "86 000: it is true this time");
    assert_eq!(reader.check_typed(8_600_000), 0);
    assert_eq!(reader.check_typed(800_000), 0);
    assert_eq!(reader.check_typed(8_600_000), 0, "no third time");
    assert_eq!(reader.mails.len(), 2);
    // What was not told a second time still can be.
    assert_eq!(reader.check_typed(9_400_000), 1);
}

#[test]
fn a_year_that_swings_around_a_ceiling_tells_once() {
    let mut reader = Reader::default();
    for _ in 0..5 {
        reader.check_typed(8_500_001);
        reader.check_typed(8_499_999);
        reader.check_typed(7_650_000);
    }
    assert_eq!(reader.mails.len(), 1);
    assert!(reader.told.iter().all(|told| told.times == 1 && !told.withdrawn));
}

#[test]
fn what_was_to_be_verified_does_not_use_up_what_is_certain() {
    let mut reader = Reader::default();
    // 70 000 € are certain (80 %), 90 000 € perhaps (100 %).
    let doubtful = books(mixed(&[(5, SALES, 7_000_000, 2_000_000)]), None);
    let assessment = reader.check(&doubtful);
    let crossing = of(&assessment, VatBaseTotal);
    assert_eq!((crossing.step, crossing.turnover), (100, 9_000_000));
    assert_eq!(crossing.doubt, Some(Doubt { typed: 7_000_000, imported: 2_000_000 }));
    let tell: Vec<_> = assessment.tell.iter().map(|told| (told.step, told.told_as)).collect();
    assert_eq!(tell, [(80, ToldAs::Certain), (90, ToldAs::ToVerify), (100, ToldAs::ToVerify)]);
    assert!(reader.check(&doubtful).tell.is_empty());
    // Confirmed as distinct, or typed elsewhere: now it is certain.
    assert_eq!(reader.check_typed(9_000_000), 1);
    assert_eq!(reader.mails[1].shown, [(VatBaseTotal, 100, false)]);
    assert_eq!(reader.check_typed(9_000_000), 0);
}

#[test]
fn a_certain_step_below_a_doubtful_one_shows_what_is_certain() {
    let mut reader = Reader::default();
    reader.check(&books(mixed(&[(5, SALES, 7_000_000, 2_000_000)]), None));
    let more = books(mixed(&[(5, SALES, 7_650_000, 2_000_000)]), None);
    let assessment = reader.check(&more);
    let crossing = of(&assessment, VatBaseTotal);
    assert_eq!((crossing.step, crossing.turnover, crossing.doubt), (90, 7_650_000, None));
}

#[test]
fn a_doubt_that_is_dispelled_is_withdrawn() {
    let mut reader = Reader::default();
    reader.check(&books(mixed(&[(5, SALES, 5_000_000, 5_000_000)]), None));
    assert_eq!(reader.told.len(), 4, "80, 90 and 100 of the base, 100 of the increased threshold");
    // The same money: one side was deleted.
    reader.check_typed(5_000_000);
    assert!(reader.told.iter().all(|told| told.withdrawn));
}

/// Amounts that arrive one after the other: month, activity, typed or imported.
fn any_arrivals(cents: std::ops::Range<i64>) -> impl Strategy<Value = Vec<BookRow>> {
    let activity = prop::sample::select(vec![SALES, SERVICES, LIBERAL]);
    let arrival =
        (1_u32..=12, activity, cents, any::<bool>()).prop_map(|(month, activity, cents, is_typed)| {
            if is_typed { row(month, activity, cents, 0) } else { row(month, activity, 0, cents) }
        });
    prop::collection::vec(arrival, 1..10)
}

/// The certain steps that stand at the end, by threshold.
fn standing(reader: &Reader) -> Vec<Telling> {
    let stands = |told: &&Told| !told.withdrawn && told.telling.told_as == ToldAs::Certain;
    let mut standing: Vec<Telling> = reader.told.iter().filter(stands).map(|told| told.telling).collect();
    standing.sort_unstable();
    standing
}

/// Since when VAT is due for certain, as a day that can be compared; `None`: it is not.
fn due(state: &State) -> Option<NaiveDate> {
    use super::super::super::{Passed, Vat};
    let day = |passed| match passed {
        Passed::On(day) => day,
        Passed::In(month) => month.first_day(),
        Passed::During(year) => eve(year),
    };
    match state.certain.vat {
        Vat::Free { .. } => None,
        Vat::Next { from, .. } => Some(from),
        Vat::Since { passed, .. } | Vat::SinceYearBefore { passed } => Some(day(passed)),
        Vat::SinceNewYear { since } => Some(since),
    }
}

proptest! {
    /// Whatever happens to the books, no step is told of a third time (`Reader` asserts it).
    #[test]
    fn no_step_is_told_of_a_third_time(years in prop::collection::vec(any_rows(SOME), 1..12)) {
        let mut reader = Reader::default();
        for rows in years {
            let books = books(rows, None);
            reader.check(&books);
            let again = reader.check(&books);
            prop_assert!(again.tell.is_empty() && again.turned.is_empty());
        }
    }

    /// The order in which turnover arrives decides what was told when, not what is true in the end.
    #[test]
    fn the_order_of_arrival_changes_nothing_in_the_end(
        arrivals in any_arrivals(0..6_000_000).prop_shuffle().prop_flat_map(|one| {
            (Just(one.clone()), Just(one).prop_shuffle())
        }),
    ) {
        let tell = |arrivals: &[BookRow]| {
            let (mut reader, mut state) = (Reader::default(), None);
            for until in 1..=arrivals.len() {
                let rows = with_mixed(arrivals[..until].to_vec());
                state = Some(reader.check(&books(rows, None)).state);
            }
            (standing(&reader), state)
        };
        prop_assert_eq!(tell(&arrivals.0), tell(&arrivals.1));
    }

    /// As turnover is typed month after month, what is due is never due later, and never not due any more.
    #[test]
    fn what_is_due_already_is_never_due_later(
        mut arrivals in any_arrivals(0..6_000_000),
        before in any_rows(0..1_500_000),
    ) {
        arrivals.sort_by_key(|row| row.month);
        let (mut reader, mut last) = (Reader::default(), None);
        for until in 1..=arrivals.len() {
            let mut of_user = books(with_mixed(arrivals[..until].to_vec()), None);
            of_user.years.push(YearBooks { year: 2025, rows: before.clone() });
            reader.check(&of_user);
        }
        for mail in &reader.mails {
            let now = due(&mail.state);
            if let Some(last) = last {
                prop_assert!(now.is_some_and(|now| now <= last), "{last}, then {now:?}");
            }
            last = now.or(last);
        }
    }

    /// A mistake of any size that is corrected leaves the year as it would have been, and told once.
    #[test]
    fn a_corrected_mistake_is_told_of_again_once(
        mistake in 10_000_000_i64..90_000_000,
        small in 0_i64..2_000_000,
        real in 0_i64..30_000_000,
    ) {
        let mut reader = Reader::default();
        reader.check_typed(mistake);
        reader.check_typed(small);
        let told_again = reader.check_typed(real);
        prop_assert_eq!(reader.check_typed(real), 0);
        let mut fresh = Reader::default();
        prop_assert_eq!(told_again, fresh.check_typed(real));
        prop_assert_eq!(standing(&reader), standing(&fresh));
    }
}
