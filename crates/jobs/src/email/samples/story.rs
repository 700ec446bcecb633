//! Plays a year of one user: what they do, what they cash, and every mail that follows, by the rules of the product.
//!
//! Camille sells services, signs up in January 2026, connects Stripe, pays for Premium, mistypes an amount, and crosses both
//! thresholds of VAT. Days, recaps, reminders and alerts come in the order in which they would arrive.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};

use crate::{
    email::{
        ActivityTotal, ActivityTurnover, AlertRemarks, BooksVerdict, Definitive, Facts, MonthTwice,
        Retracted, SourceTotal,
    },
    schedule::{Month, paris},
    urssaf::{
        ActivitySum, BookRow, DaySum, IncomeTax, TaxProfile, Telling, Threshold, Told, ToldAs, UserBooks,
        YearBooks, assess,
    },
};

const SERVICES: &str = "Prestation de services";

/// Payments through Stripe: the day and the euros. Those of a month's last day come after its recap.
const PAYMENTS: [(&str, i64); 29] = [
    ("2026-01-22", 1_400),
    ("2026-01-28", 1_500),
    ("2026-01-31", 150),
    ("2026-02-10", 1_700),
    ("2026-02-24", 1_500),
    ("2026-03-05", 2_000),
    ("2026-03-19", 1_900),
    ("2026-04-09", 2_100),
    ("2026-04-23", 2_000),
    ("2026-05-07", 1_800),
    ("2026-05-21", 1_800),
    ("2026-06-04", 2_400),
    ("2026-06-18", 2_400),
    ("2026-07-02", 2_600),
    ("2026-07-16", 2_600),
    ("2026-09-08", 2_500),
    ("2026-09-22", 2_400),
    ("2026-10-06", 1_900),
    ("2026-10-14", 900),
    ("2026-10-27", 1_600),
    ("2026-11-05", 1_700),
    ("2026-11-12", 1_800),
    ("2026-11-26", 2_000),
    ("2026-12-03", 2_000),
    ("2026-12-10", 2_200),
    ("2026-12-17", 1_800),
    ("2027-01-07", 2_300),
    ("2027-01-14", 1_900),
    ("2027-01-28", 2_000),
];

/// Represents a day of the story: what happened, and the mail that came, if any.
pub(super) struct Page {
    pub(super) day: NaiveDate,
    pub(super) event: String,
    pub(super) mail: Option<Facts>,
}

/// Holds what is known of Camille on the day that is played.
#[derive(Default)]
struct Life {
    today: NaiveDate,
    pages: Vec<Page>,
    /// Holds typed turnover, in cents.
    typed: BTreeMap<Month, i64>,
    confirmed: bool,
    premium: bool,
    connected: bool,
    /// Says of each year and step how often it was told, and whether that was withdrawn.
    told: BTreeMap<(i32, Telling), (u8, bool)>,
    /// Lists the ceilings that a mail has called exceeded.
    exceeded: Vec<(i32, Threshold)>,
    /// Lists what the next mail takes back.
    retracted: Vec<Retracted>,
    /// Holds what each month's recap said, in cents.
    recapped: BTreeMap<Month, (DateTime<Utc>, i64)>,
}

/// Plays the year, day by day.
pub(super) fn pages() -> Vec<Page> {
    let mut life = Life::default();
    let last = day("2027-02-02");
    for today in day("2026-01-09").iter_days().take_while(|today| *today <= last) {
        life.today = today;
        life.happens();
        life.live();
    }
    life.pages
}

impl Life {
    /// Plays what Camille does on some days.
    fn happens(&mut self) {
        match self.today.to_string().as_str() {
            "2026-01-09" => self.event("Camille crée son compte, sans payer."),
            "2026-01-12" => {
                self.mail(
                    "Trois jours après.",
                    Facts::MarketingDay3 { first_name: Some("Camille".to_owned()) },
                );
            }
            "2026-01-20" => {
                self.connected = true;
                self.event("Camille relie son compte Stripe.");
            }
            "2026-02-01" => {
                self.premium = true;
                self.event("Camille prend la formule Premium et active le rappel mensuel.");
            }
            "2026-05-23" => self.types("2026-05", 400, "Camille saisit 400 € reçus par virement en mai."),
            "2026-06-03" => {
                self.confirmed = true;
                self.event(
                    "Par le lien du rappel, Camille indique que ses saisies et ses imports sont des encaissements distincts.",
                );
            }
            "2026-09-20" => self.types("2026-09", 90_000, "Camille saisit 90 000 € au lieu de 900 €."),
            "2026-09-21" => self.types("2026-09", 900, "Camille corrige : 900 €."),
            "2026-12-20" => {
                self.types("2027-01", 3_000, "Camille saisit d’avance 3 000 € attendus en janvier 2027.");
            }
            _ => {}
        }
    }

    fn types(&mut self, of: &str, euros: i64, what: &str) {
        self.typed.insert(month(of), euros * 100);
        self.event(what);
        self.check();
    }

    fn event(&mut self, what: &str) {
        self.pages.push(Page { day: self.today, event: what.to_owned(), mail: None });
    }

    fn mail(&mut self, why: &str, facts: Facts) {
        self.pages.push(Page { day: self.today, event: why.to_owned(), mail: Some(facts) });
    }

    /// Plays what the product does on each day.
    fn live(&mut self) {
        let of = Month::of(self.today);
        if self.connected && PAYMENTS.iter().any(|(on, _)| day(on) == self.today) {
            self.check();
        }
        if self.connected && self.today == of.last_day() {
            self.recap(of);
        }
        if self.premium && self.today.to_string().ends_with("-02") {
            self.remind(of.previous());
        }
    }

    /// Returns what Stripe has brought for a month up to a day, in cents.
    fn imported(of: Month, until: NaiveDate) -> i64 {
        let counts = |on: NaiveDate| Month::of(on) == of && on <= until;
        PAYMENTS.iter().filter(|(on, _)| counts(day(on))).map(|(_, euros)| euros * 100).sum()
    }

    /// Returns the months of a year, with what is typed and what is imported for each, up to a day.
    fn months(&self, year: i32, until: NaiveDate) -> Vec<(Month, i64, i64)> {
        (1..=12)
            .filter_map(|number| Month::new(year, number))
            .map(|of| (of, self.typed.get(&of).copied().unwrap_or_default(), Self::imported(of, until)))
            .filter(|(_, typed, imported)| (*typed, *imported) != (0, 0))
            .collect()
    }

    fn twice(&self, year: i32, until: NaiveDate) -> Vec<MonthTwice> {
        let both =
            |(_, typed, imported): &(Month, i64, i64)| *typed != 0 && *imported != 0 && !self.confirmed;
        let of_year = self.months(year, until).into_iter().filter(both);
        of_year.map(|(month, typed, imported)| MonthTwice { month, typed, imported }).collect()
    }

    fn verdict(&self, of: Month, until: NaiveDate) -> Option<BooksVerdict> {
        let both = self.typed.contains_key(&of) && Self::imported(of, until) != 0;
        (both && self.confirmed).then_some(BooksVerdict::Distinct)
    }

    /// Checks the thresholds, as a sync or an entry of the application does.
    fn check(&mut self) {
        let year_books = |year| YearBooks {
            year,
            rows: self
                .months(year, self.today)
                .into_iter()
                .map(|(of, typed, imported)| BookRow {
                    month: of.month(),
                    activity: SERVICES.to_owned(),
                    typed,
                    imported,
                    mixed: typed != 0 && imported != 0 && !self.confirmed,
                })
                .collect(),
        };
        let year = chrono::Datelike::year(&self.today);
        let until_today = PAYMENTS.iter().filter(|(on, _)| day(on) <= self.today);
        let books = UserBooks {
            years: [year - 1, year]
                .map(year_books)
                .into_iter()
                .filter(|books| !books.rows.is_empty())
                .collect(),
            created: profile().created,
            days: until_today
                .map(|(on, euros)| DaySum {
                    day: day(on),
                    activity: SERVICES.to_owned(),
                    amount: euros * 100,
                })
                .collect(),
        };
        let told: Vec<Told> = self
            .told
            .iter()
            .filter(|((of, _), _)| *of == year)
            .map(|((_, telling), (times, withdrawn))| Told {
                telling: *telling,
                times: *times,
                withdrawn: *withdrawn,
            })
            .collect();
        let Some(found) = assess(&books, &told, year, self.today) else { return };
        for turned in found.turned {
            self.told.entry((year, turned.telling)).and_modify(|told| told.1 = !turned.withdrawn);
            let key = (year, turned.telling.threshold);
            if turned.telling.step == 100
                && turned.telling.told_as == ToldAs::Certain
                && self.exceeded.contains(&key)
            {
                let threshold = Some(turned.telling.threshold);
                self.retracted.push(Retracted { year, threshold, consequence: None });
                self.exceeded.retain(|other| *other != key);
            }
        }
        for telling in &found.tell {
            let told = self.told.entry((year, *telling)).or_default();
            *told = (told.0 + 1, false);
        }
        if found.crossings.is_empty() {
            return;
        }
        let over = found.crossings.iter().filter(|crossing| crossing.step == 100 && crossing.doubt.is_none());
        self.exceeded.extend(over.map(|crossing| (year, crossing.threshold)));
        let alert = Facts::ThresholdAlert {
            first_name: Some("Camille".to_owned()),
            year,
            crossings: found.crossings,
            unknown_activities: found.unknown_activities,
            state: Some(found.state),
            as_of: Some(self.today),
            remarks: AlertRemarks { planned: found.planned, ..AlertRemarks::default() },
            consequences: Vec::new(),
            retracted: std::mem::take(&mut self.retracted),
        };
        self.mail("Un seuil est atteint.", alert);
    }

    /// Sends the recap of a month on its last day, of what came before that day.
    fn recap(&mut self, of: Month) {
        let until = self.today.pred_opt().unwrap_or(self.today);
        let total = Self::imported(of, until);
        let at = paris::start_of(self.today) + chrono::TimeDelta::hours(8);
        self.recapped.insert(of, (at, total));
        let months = self.months(of.year(), until);
        let (now, later): (Vec<_>, Vec<_>) = months.into_iter().partition(|(month, ..)| *month <= of);
        let sum = |side: fn(&(Month, i64, i64)) -> i64| now.iter().map(side).sum::<i64>();
        let facts = Facts::MonthlyRecap {
            first_name: Some("Camille".to_owned()),
            month: of,
            total,
            sources: if total == 0 {
                Vec::new()
            } else {
                vec![SourceTotal { source: "stripe".to_owned(), gross: total, refunds: 0 }]
            },
            provisional_at: Some(at),
            typed: self.typed.get(&of).copied(),
            uncounted: Vec::new(),
            unread: Vec::new(),
            not_theirs: Vec::new(),
            ended: Vec::new(),
            partial: false,
            maybe_twice: 0,
            passed_on: 0,
            year: Some(vec![ActivitySum {
                activity: SERVICES.to_owned(),
                typed: sum(|(_, typed, _)| *typed),
                imported: sum(|(.., imported)| *imported),
            }]),
            created: profile().created,
            contradiction: None,
            mixed: self.twice(of.year(), until).into_iter().filter(|twice| twice.month <= of).collect(),
            verdict: self.verdict(of, until),
            activities: if total == 0 {
                Vec::new()
            } else {
                vec![ActivityTotal { activity: SERVICES.to_owned(), total }]
            },
            ahead: Some(later.iter().map(|(_, typed, _)| typed).sum()),
            empty: (1..of.month())
                .filter_map(|number| Month::new(of.year(), number))
                .filter(|month| now.iter().all(|(known, ..)| known != month))
                .collect(),
            assumed: Vec::new(),
            retracted: std::mem::take(&mut self.retracted),
        };
        self.mail("Le dernier jour du mois.", facts);
    }

    /// Sends the reminder of a month on the 2nd of the next.
    fn remind(&mut self, of: Month) {
        let until = of.last_day();
        let (typed, imported) = (self.typed.get(&of).copied().unwrap_or_default(), Self::imported(of, until));
        let quarter: i64 = self
            .months(of.year(), until)
            .iter()
            .filter(|(month, ..)| *month <= of && month.month().div_ceil(3) == of.month().div_ceil(3))
            .map(|(_, typed, imported)| typed + imported)
            .sum();
        let definitive = self.recapped.get(&of).map(|(at, mailed)| Definitive {
            mailed: *mailed,
            mailed_at: Some(*at),
            provisional: true,
            total: imported,
        });
        let facts = Facts::MonthlyReminder {
            first_name: Some("Camille".to_owned()),
            month: of,
            recorded: typed + imported,
            entries: u32::from(typed != 0) + u32::from(imported != 0),
            books: Some(vec![ActivityTurnover { activity: SERVICES.to_owned(), typed, imported, quarter }]),
            profile: profile(),
            mixed: self.twice(of.year(), until),
            verdict: self.verdict(of, until),
            definitive,
            uncounted: Vec::new(),
            today: Some(self.today),
            incomplete: Vec::new(),
            assumed: Vec::new(),
            retracted: std::mem::take(&mut self.retracted),
        };
        self.mail("Le 2 du mois.", facts);
    }
}

/// Returns how Camille says to be taxed: since 2024, at the flat rate, without ACRE.
fn profile() -> TaxProfile {
    TaxProfile {
        created: Some(day("2024-05-02")),
        has_acre: Some(false),
        income_tax: Some(IncomeTax::Flat),
        ..TaxProfile::default()
    }
}

fn day(day: &str) -> NaiveDate {
    day.parse().expect("a day of the story")
}

fn month(month: &str) -> Month {
    month.parse().expect("a month of the story")
}
