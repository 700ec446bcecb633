//! What we compute of contributions, training, flat income tax and ceilings is what Urssaf's own rules compute, to the
//! euro. Where we differ on purpose, docs/law.md says why; what of that can be tried is tried here.

use anyhow::{Context as _, Result, ensure};
use chrono::{Datelike as _, Days, NaiveDate};
use jobs::{
    schedule::Month,
    urssaf::{
        BookRow, Caveat, Euros, IncomeTax, IncomeTaxAside, Receipts, TaxProfile, Threshold, Trade, UserBooks,
        YearBooks, acre_end, assess, declared, put_aside,
    },
};
use stand_ins::urssaf_rules::{Nature, RulesAnswer, Situation, ask_all};

use crate::promises::model::Dice;

/// So many random situations are compared. A situation costs the rules some eight milliseconds.
const SITUATIONS: usize = 2_000;

/// The rules have dates from before 2023 to July 2026, and carry the last on.
const YEARS: std::ops::RangeInclusive<i32> = 2023..=2026;

const SALES: &str = "Vente de marchandises";
const SERVICES: &str = "Prestation de services";
const LIBERAL: &str = "Activité libérale";
const CIPAV: &str = "Activité libérale (Cipav)";

/// Represents a month of a user as the database has it: what both sides are asked about.
#[derive(Clone, Debug)]
struct Case {
    month: Month,
    profile: TaxProfile,
    created: NaiveDate,
    nature: Nature,
    /// Lists activities as they are spelled, with cents.
    turnover: Vec<(&'static str, i64)>,
}

impl Case {
    fn roll(dice: &mut Dice) -> Result<Self> {
        let mut pick = |n: i32| i32::try_from(dice.below(n.unsigned_abs().into()));
        let years = YEARS.end() - YEARS.start() + 1;
        // Many are of the second half of 2026, which has both reductions of ACRE.
        let (year, number) = if pick(4)? == 0 {
            (*YEARS.end(), 7 + pick(6)?)
        } else {
            (YEARS.start() + pick(years)?, 1 + pick(12)?)
        };
        let month = Month::new(year, number.unsigned_abs()).context("a month")?;
        // Half of them are young: ACRE begins and ends.
        let oldest = [120, 450, 5_000, 5_000][usize::try_from(pick(4)?)?];
        let age = pick(oldest)?;
        let created = month.last_day() - Days::new(u64::from(age.unsigned_abs()));
        let activities: &[&str] = match pick(8)? {
            0 => &[SALES],
            1 => &[SERVICES],
            2 => &[LIBERAL],
            // The rules know the Cipav only where nothing else is sold.
            3 => &[CIPAV],
            4 => &[SALES, SERVICES],
            5 => &[SALES, LIBERAL],
            6 => &[SERVICES, LIBERAL],
            _ => &[SALES, SERVICES, LIBERAL],
        };
        let nature = match (activities, pick(3)?) {
            ([LIBERAL | CIPAV], _) | ([.., LIBERAL], 0) => Nature::Liberal,
            (_, 1) => Nature::Craft,
            _ => Nature::Commerce,
        };
        let mut turnover = Vec::new();
        for &activity in activities {
            let cents = match pick(4)? {
                0 => pick(100_000)?,
                1 => pick(1_000_000)?,
                // Up to and above every ceiling.
                2 => pick(2_500_000)?,
                // Half euros of contributions and of training.
                _ => pick(200)? * 50_000,
            };
            turnover.push((activity, i64::from(cents)));
        }
        let profile = TaxProfile {
            created: Some(created),
            has_acre: Some(pick(2)? == 0),
            income_tax: Some(if pick(2)? == 0 { IncomeTax::Flat } else { IncomeTax::Scale }),
            trade: Some(if matches!(nature, Nature::Craft) { Trade::Craft } else { Trade::Commerce }),
            cipav: None,
        };
        Ok(Self { month, profile, created, nature, turnover })
    }

    /// Returns the euros that are declared of an activity.
    fn declared(&self, activity: &str) -> i64 {
        let cents = self.turnover.iter().filter(|(name, _)| *name == activity).map(|(_, cents)| cents).sum();
        declared(cents).0
    }

    /// Returns the same in the rules' terms. `acre` is the user's answer to the rules' question.
    fn situation(&self, acre: bool) -> Situation {
        Situation {
            date: self.month.last_day(),
            created: self.created,
            nature: self.nature,
            acre,
            cipav: self.turnover.iter().any(|&(activity, _)| activity == CIPAV),
            flat_tax: self.profile.income_tax == Some(IncomeTax::Flat),
            sales: self.declared(SALES),
            services: self.declared(SERVICES),
            liberal: self.declared(LIBERAL) + self.declared(CIPAV),
        }
    }

    /// Tells whether there is ACRE in the month by the text, which the rules leave to the user.
    fn has_acre(&self) -> bool {
        self.profile.has_acre == Some(true) && self.month.first_day() < acre_end(self.created)
    }

    fn receipts(&self) -> Receipts {
        let mut receipts = Receipts::default();
        for &(activity, cents) in &self.turnover {
            receipts.add(activity, cents);
        }
        receipts
    }

    /// Returns contributions, training, flat income tax.
    fn amounts(&self) -> Result<[i64; 3]> {
        let aside = put_aside(&self.receipts(), self.month, self.profile).context("the month has rates")?;
        let flat_tax = if let IncomeTaxAside::Flat(euros) = aside.income_tax { euros } else { Euros(0) };
        Ok([aside.contributions.0, aside.training.0, flat_tax.0])
    }

    /// Says whether twelve such months exceed a ceiling of the micro regime.
    fn exceeds(&self) -> bool {
        let year = self.turnover.iter().map(|&(activity, _)| (activity, self.declared(activity) * 1_200));
        exceeds(self.month.year(), &year.collect::<Vec<_>>())
    }
}

fn exceeds(year: i32, turnover: &[(&str, i64)]) -> bool {
    let row = |&(activity, typed): &(&str, i64)| BookRow {
        month: 6,
        activity: activity.to_owned(),
        typed,
        imported: 0,
        mixed: false,
    };
    let years = vec![YearBooks { year, rows: turnover.iter().map(row).collect() }];
    let books = UserBooks { years, ..UserBooks::default() };
    let today = NaiveDate::from_ymd_opt(year, 12, 31).expect("a date");
    assess(&books, &[], year, today).is_some_and(|found| {
        let micro = [Threshold::MicroTotal, Threshold::MicroServices];
        found.tell.iter().any(|told| micro.contains(&told.threshold) && told.step == 100)
    })
}

fn amounts(answer: &RulesAnswer) -> [i64; 3] {
    [answer.contributions, answer.training, answer.flat_tax]
}

#[tokio::test(flavor = "multi_thread")]
async fn random_situations_agree_with_urssafs_rules_to_the_euro() -> Result<()> {
    let mut dice = Dice(20_261_128);
    let cases = (0..SITUATIONS).map(|_| Case::roll(&mut dice)).collect::<Result<Vec<_>>>()?;
    let situations: Vec<_> = cases.iter().map(|case| case.situation(case.has_acre())).collect();
    let answers = ask_all(&situations).await?;
    let mut differences = Vec::new();
    for (case, answer) in cases.iter().zip(&answers) {
        let ours = (case.amounts()?, case.exceeds());
        if ours != (amounts(answer), answer.exceeded) {
            differences.push(format!("{case:?}: ours {ours:?}, the rules' {answer:?}"));
        }
    }
    let count = differences.len();
    ensure!(count == 0, "{count} of {SITUATIONS} differ:\n{}", differences[..count.min(10)].join("\n"));

    // The dice have rolled what matters.
    let seen = |what: &dyn Fn(&Case) -> bool| cases.iter().filter(|case| what(case)).count();
    assert!(seen(&Case::has_acre) > 100);
    assert!(seen(&|case| case.has_acre() && case.created.year() == 2026 && case.created.month() > 6) > 50);
    assert!(seen(&|case| case.profile.has_acre == Some(true) && !case.has_acre()) > 100);
    assert!(seen(&|case| case.turnover.len() > 1) > 500);
    assert!(seen(&|case| case.turnover[0].0 == CIPAV && case.has_acre()) > 20);
    assert!(answers.iter().filter(|answer| answer.exceeded).count() > 100);
    for year in YEARS {
        assert!(seen(&|case| case.month.year() == year) > 300);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ceilings_are_those_of_urssafs_rules() -> Result<()> {
    let case = |year| {
        let month = Month::new(year, 6).context("a month")?;
        let created = NaiveDate::from_ymd_opt(2015, 1, 1).context("a date")?;
        let turnover = vec![(SALES, 100_000)];
        Ok(Case { month, profile: TaxProfile::default(), created, nature: Nature::Commerce, turnover })
    };
    let cases = YEARS.map(case).collect::<Result<Vec<Case>>>()?;
    let situations: Vec<_> = cases.iter().map(|case| case.situation(false)).collect();
    for (year, answer) in YEARS.zip(ask_all(&situations).await?) {
        for (activity, ceiling) in [SALES, SERVICES].into_iter().zip(answer.ceilings) {
            assert!(!exceeds(year, &[(activity, ceiling * 100)]), "{activity} {year}");
            assert!(exceeds(year, &[(activity, ceiling * 100 + 1)]), "{activity} {year}");
        }
    }
    Ok(())
}

/// As docs/law.md says ("Where we differ from the rules"), the rules apply ACRE for as long as the
/// user says so and the activity was less than a year old on 1 January, up to 23 months. The text
/// ends it after nine to twelve.
#[tokio::test(flavor = "multi_thread")]
async fn after_the_end_of_acre_we_do_not_lower_contributions_and_say_so() -> Result<()> {
    let created = NaiveDate::from_ymd_opt(2025, 6, 3).context("a date")?;
    let end = NaiveDate::from_ymd_opt(2026, 4, 1).context("a date")?;
    let profile = TaxProfile { created: Some(created), has_acre: Some(true), ..TaxProfile::default() };
    let month = "2026-11".parse()?;
    let turnover = vec![(SERVICES, 100_000)];
    let case = Case { month, profile, created, nature: Nature::Commerce, turnover };
    let answers = ask_all(&[case.situation(true), case.situation(false)]).await?;
    assert_eq!(answers.iter().map(|answer| answer.contributions).collect::<Vec<_>>(), [106, 212]);
    let ours = put_aside(&case.receipts(), month, profile).context("the month has rates")?;
    assert_eq!(ours.contributions, Euros(212));
    assert!(ours.caveats.contains(&Caveat::AcreEnded { on: end }));
    Ok(())
}
