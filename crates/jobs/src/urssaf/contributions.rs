//! What a month's or a quarter's turnover costs: what to put aside for it, and what a row of `ca_records` carries.
//!
//! ```
//! # use jobs::urssaf::{Euros, Receipts, TaxProfile, put_aside};
//! let mut november = Receipts::default();
//! november.add("Vente de marchandises", 240_000);
//! november.add("Prestation de services", 60_000);
//! let aside = put_aside(&november, "2026-11".parse().unwrap(), TaxProfile::default()).unwrap();
//! // 295 and 127.
//! assert_eq!(aside.contributions, Euros(422));
//! assert_eq!(aside.training, Euros(3));
//! ```
//!
//! # Rounding
//!
//! A declaration is in whole euros: each activity's turnover is rounded to the euro, half an euro up, and a negative
//! one is declared as 0. Contributions are rounded to the euro for each activity; training and flat income tax are
//! added up over the activities first. So do Urssaf's rules. A row of `ca_records` is exact to the cent instead, as the
//! web application writes it, so that rows add up; a negative row carries negative amounts for the same reason.
//!
//! # What is left out
//!
//! The chamber taxes (they depend on trade and department), the overseas rates, and that ACRE ends early for
//! who exceeds the ceiling of social security: the database does not know. [`Caveat`] names what concerns a user.

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use super::rates::{Acre, Category, Levy, RATES_KNOWN_UNTIL, Rate, rate, whole};
use crate::schedule::Month;

#[cfg(test)]
mod tests;

/// Represents whole euros, as they are declared and paid.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Euros(pub i64);

/// Holds the turnover of a month or a quarter by category, in cents.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Receipts {
    pub sales: i64,
    pub services: i64,
    pub liberal: i64,
    /// Is liberal work whose spelling names the Cipav.
    pub cipav: i64,
    /// Is turnover of an activity that is not known: nothing is computed for it.
    pub unknown: i64,
}

impl Receipts {
    /// Adds an amount to its activity, as it is spelled in the rows.
    pub fn add(&mut self, activity: &str, cents: i64) {
        let sum = match Category::parse(activity) {
            Some(Category::Sales) => &mut self.sales,
            Some(Category::Services) => &mut self.services,
            Some(Category::Liberal) => &mut self.liberal,
            Some(Category::Cipav) => &mut self.cipav,
            None => &mut self.unknown,
        };
        *sum = sum.saturating_add(cents);
    }

    fn of(&self, category: Category) -> i64 {
        match category {
            Category::Sales => self.sales,
            Category::Services => self.services,
            Category::Liberal => self.liberal,
            Category::Cipav => self.cipav,
        }
    }
}

/// Says how income tax is paid: the names of `user_onboarding_data.ir_mode`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum IncomeTax {
    /// It is a flat share of the turnover, paid with the contributions.
    #[serde(rename = "versement_liberatoire")]
    Flat,
    /// It follows the household's scale, with its yearly return.
    #[serde(rename = "bareme")]
    Scale,
    #[serde(rename = "non_soumis")]
    NotSubject,
}

/// Says which training contribution sales and services pay.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trade {
    Commerce,
    Craft,
}

/// Holds what is known of a user. `None`: it is not known. A rate that the user has typed is not
/// among it: the law's wins.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct TaxProfile {
    /// Is `user_onboarding_data.company_creation_date`.
    pub created: Option<NaiveDate>,
    /// `user_onboarding_data.has_acre`. The year beside it is of a scheme that ended in 2022.
    pub has_acre: Option<bool>,
    /// Is `user_onboarding_data.ir_mode`.
    pub income_tax: Option<IncomeTax>,
    /// The database does not know.
    pub trade: Option<Trade>,
    /// Says whether liberal work belongs to the Cipav where its spelling does not say so. The
    /// database does not know.
    pub cipav: Option<bool>,
}

impl TaxProfile {
    fn category(self, category: Category) -> Category {
        match category {
            Category::Liberal if self.cipav == Some(true) => Category::Cipav,
            category => category,
        }
    }
}

/// Says what to put aside for a period.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PutAside {
    /// Has one line for each category that has any turnover. It may be declared as 0.
    pub lines: Vec<DeclaredTurnover>,
    /// Is the sum of the social contributions.
    pub contributions: Euros,
    /// Is the contribution à la formation professionnelle.
    pub training: Euros,
    pub income_tax: IncomeTaxAside,
    /// Is the sum of contributions, training, and income tax where it is flat.
    pub total: Euros,
    /// Says what the figures assume or leave out, in the order of printing.
    pub caveats: Vec<Caveat>,
}

/// Holds what is declared of a category, and its contributions.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DeclaredTurnover {
    pub category: Category,
    pub declared: Euros,
    pub rate: Rate,
    pub contributions: Euros,
}

/// Says how the income tax of a period is paid.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "is", content = "euros", rename_all = "snake_case")]
pub enum IncomeTaxAside {
    /// It is due with the contributions, and this much.
    Flat(Euros),
    /// It is due with the household's return, and not estimated.
    Scale,
    NotSubject,
    /// The profile does not say which.
    Unknown,
}

/// Represents something that the figures assume or leave out.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Caveat {
    /// Turnover of an activity that is not known is not counted.
    UnknownActivity { cents: i64 },
    /// Whether there is ACRE is not known: counted in full.
    AcreUnknown,
    /// There is ACRE, and no creation date says from when: counted in full.
    AcreUndated,
    /// The profile still says ACRE. From this day on contributions are due in full.
    AcreEnded { on: NaiveDate },
    /// There is turnover from before the creation date, so that date cannot be right: counted in full.
    AcreContradicted { created: NaiveDate },
    /// Sales and services are counted as commerce: craft pays more for training.
    TradeAssumed,
    /// Liberal work is counted in the general scheme: the Cipav has other rates.
    SchemeAssumed,
    /// How income tax is paid is not known: it is not counted.
    IncomeTaxUnknown,
    /// The chamber taxes are not counted.
    ChamberTax,
    /// The rates of this year are not known yet: those of the year before are taken.
    RatesAssumed,
}

/// Returns what to put aside for the turnover of a month, or of a quarter, which is named by its
/// last month: rates only ever change between quarters. `None`: the rates of the month are not
/// known.
pub fn put_aside(receipts: &Receipts, month: Month, profile: TaxProfile) -> Option<PutAside> {
    let (contributions_levy, acre) = contributions_levy(profile, month);
    let training_levy = match profile.trade {
        Some(Trade::Craft) => Levy::TrainingOfCraft,
        Some(Trade::Commerce) | None => Levy::Training,
    };
    let (mut lines, mut training, mut flat_tax) = (Vec::new(), 0, 0);
    for category in Category::ALL {
        let cents = receipts.of(category);
        if cents == 0 {
            continue;
        }
        let category = profile.category(category);
        let declared = declared(cents);
        let share = |levy| Some(rate(category, levy, month)?.ten_thousandths(declared.0));
        let rate = rate(category, contributions_levy, month)?;
        let contributions = Euros(whole(rate.ten_thousandths(declared.0)));
        lines.push(DeclaredTurnover { category, declared, rate, contributions });
        training += share(training_levy)?;
        flat_tax += share(Levy::FlatTax)?;
    }
    let contributions = Euros(lines.iter().map(|line| line.contributions.0).sum());
    let training = Euros(whole(training));
    let flat_tax = Euros(whole(flat_tax));
    let (income_tax, due_with_it) = match profile.income_tax {
        Some(IncomeTax::Flat) => (IncomeTaxAside::Flat(flat_tax), flat_tax.0),
        Some(IncomeTax::Scale) => (IncomeTaxAside::Scale, 0),
        Some(IncomeTax::NotSubject) => (IncomeTaxAside::NotSubject, 0),
        None => (IncomeTaxAside::Unknown, 0),
    };
    let total = Euros(contributions.0 + training.0 + due_with_it);
    let caveats = caveats(receipts, month, profile, acre);
    Some(PutAside { lines, contributions, training, income_tax, total, caveats })
}

/// Returns what is declared of a category's turnover.
pub fn declared(cents: i64) -> Euros {
    Euros(whole(i128::from(cents.max(0)) * 100))
}

/// Returns which contributions a month pays, and what is to be said of it.
fn contributions_levy(profile: TaxProfile, month: Month) -> (Levy, Option<Caveat>) {
    let acre = profile.created.map(|created| (created, Acre::of(created, month)));
    match (profile.has_acre, acre) {
        (Some(true), Some((_, Acre::Reduces(levy)))) => (levy, None),
        (Some(true), Some((_, Acre::Ended(on)))) => (Levy::Full, Some(Caveat::AcreEnded { on })),
        (Some(true), Some((created, Acre::NotYet))) => {
            (Levy::Full, Some(Caveat::AcreContradicted { created }))
        }
        (Some(true), None) => (Levy::Full, Some(Caveat::AcreUndated)),
        (None, None | Some((_, Acre::Reduces(_) | Acre::NotYet))) => (Levy::Full, Some(Caveat::AcreUnknown)),
        (None, Some((_, Acre::Ended(_)))) | (Some(false), _) => (Levy::Full, None),
    }
}

fn caveats(receipts: &Receipts, month: Month, profile: TaxProfile, acre: Option<Caveat>) -> Vec<Caveat> {
    let trade = receipts.sales > 0 || receipts.services > 0;
    let liberal = receipts.liberal > 0;
    let any = trade || liberal || receipts.cipav > 0;
    let known = [
        (receipts.unknown != 0).then_some(Caveat::UnknownActivity { cents: receipts.unknown }),
        acre.filter(|_| any),
        (trade && profile.trade.is_none()).then_some(Caveat::TradeAssumed),
        (liberal && profile.cipav.is_none()).then_some(Caveat::SchemeAssumed),
        (any && profile.income_tax.is_none()).then_some(Caveat::IncomeTaxUnknown),
        trade.then_some(Caveat::ChamberTax),
        (month.year() > RATES_KNOWN_UNTIL).then_some(Caveat::RatesAssumed),
    ];
    known.into_iter().flatten().collect()
}

/// Holds what a row of `ca_records` carries beside its amount. Cents.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RowAmounts {
    /// Is `computed_contrib_eur`: contributions without training, as the web application writes
    /// them.
    pub contributions: i64,
    /// Is `ir_mode`.
    pub income_tax_mode: Option<RowIncomeTax>,
    /// Is `ir_amount_eur`.
    pub income_tax: Option<i64>,
    /// Is `computed_net_eur`: the amount less both.
    pub net: i64,
}

/// Lists the names of `ca_records.ir_mode` that the web application writes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RowIncomeTax {
    /// It is the flat income tax, which `ir_amount_eur` holds.
    Vl,
    /// It follows the household's scale: `ir_amount_eur` is null.
    Bareme,
}

/// Returns what a row of `ca_records` carries. `None`: its activity, or the rates of its month, are
/// not known.
pub fn row_amounts(activity: &str, cents: i64, month: Month, profile: TaxProfile) -> Option<RowAmounts> {
    let category = profile.category(Category::parse(activity)?);
    let share = |levy| Some(whole(rate(category, levy, month)?.ten_thousandths(cents)));
    let (levy, _) = contributions_levy(profile, month);
    let contributions = share(levy)?;
    let (income_tax_mode, income_tax) = match profile.income_tax {
        Some(IncomeTax::Flat) => (Some(RowIncomeTax::Vl), Some(share(Levy::FlatTax)?)),
        Some(IncomeTax::Scale) => (Some(RowIncomeTax::Bareme), None),
        Some(IncomeTax::NotSubject) | None => (None, None),
    };
    let net = cents - contributions - income_tax.unwrap_or(0);
    Some(RowAmounts { contributions, income_tax_mode, income_tax, net })
}
