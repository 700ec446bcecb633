//! Writes the receipts of a month or a year as a French ledger has them: date, reference, kind, means, amount. Pure.
//!
//! Semicolons, decimal commas, UTF-8 with its mark and CRLF: what a French spreadsheet opens with a double click.

use chrono::{Datelike, NaiveDate};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::{
    deadline::Deadline,
    schedule::{Month, ParseMonthError},
    supabase::{Supabase, SupabaseError},
    words,
};

/// A file has so many lines, which stay below the 4.5 MB that the platform lets pass.
pub(crate) const LINES: u32 = 20_000;

/// Says whose months a file holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Period {
    Month(Month),
    Year(i32),
}

impl Period {
    fn bounds(self) -> (NaiveDate, NaiveDate) {
        match self {
            Self::Month(month) => (month.first_day(), month.first_day()),
            Self::Year(year) => {
                let first = |month| NaiveDate::from_ymd_opt(year, month, 1).unwrap_or_default();
                (first(1), first(12))
            }
        }
    }
}

impl std::fmt::Display for Period {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Month(month) => month.fmt(f),
            Self::Year(year) => write!(f, "{year:04}"),
        }
    }
}

impl std::str::FromStr for Period {
    type Err = ParseMonthError;

    fn from_str(text: &str) -> Result<Self, ParseMonthError> {
        match text.parse::<u16>() {
            Ok(year @ 2000..=2100) if text.len() == 4 => Ok(Self::Year(year.into())),
            _ => text.parse().map(Self::Month),
        }
    }
}

/// Represents what `jobs_user_receipts` answers.
#[derive(Deserialize)]
pub(crate) struct Receipts {
    pub(crate) total: u64,
    rows: Vec<Receipt>,
}

/// Holds the day, the id, the kind, the provider, the means and the cents of a receipt.
#[derive(Deserialize)]
struct Receipt(NaiveDate, String, String, String, Option<String>, i64);

/// Asks for a part of the receipts, from 0 on.
pub(crate) async fn ask(
    supabase: &Supabase,
    user: Uuid,
    period: Period,
    part: u32,
    deadline: &Deadline,
) -> Result<Receipts, SupabaseError> {
    let (first, last) = period.bounds();
    let arguments = json!({
        "p_user_id": user, "p_first": first, "p_last": last, "p_offset": part.saturating_mul(LINES), "p_limit": LINES,
    });
    supabase.rpc("jobs_user_receipts", &arguments, deadline).await
}

impl Receipts {
    /// Returns the file.
    pub(crate) fn csv(&self) -> String {
        let mut csv = String::from("\u{feff}Date;Référence;Nature;Mode de règlement;Montant\r\n");
        for Receipt(day, id, kind, provider, method, cents) in &self.rows {
            let means = match method {
                Some(method) => {
                    format!("{} ({})", words::capitalized(words::means(method)), words::provider(provider))
                }
                None => words::provider(provider).to_owned(),
            };
            let date = format!("{:02}/{:02}/{:04}", day.day(), day.month(), day.year());
            let kind = words::capitalized(words::movement_kind(kind));
            csv.push_str(&[date, field(id), field(&kind), field(&means), amount(*cents)].join(";"));
            csv.push_str("\r\n");
        }
        csv
    }
}

/// Writes `-12,50`: a number for every French spreadsheet, without a space between thousands.
fn amount(cents: i64) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    let cents = cents.unsigned_abs();
    format!("{sign}{},{:02}", cents / 100, cents % 100)
}

/// Writes a text that others chose. One that a spreadsheet would take for a formula gets an apostrophe before it
/// ([OWASP, CSV Injection](https://owasp.org/www-community/attacks/CSV_Injection)), and is quoted where it has to be.
fn field(text: &str) -> String {
    let line: String = text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    let is_formula = line.trim_start().starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']);
    let safe = if is_formula { format!("'{line}") } else { line };
    if safe.contains([';', '"', ',']) { format!("\"{}\"", safe.replace('"', "\"\"")) } else { safe }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_ledger_opens_in_a_french_spreadsheet() {
        let receipts: Receipts = serde_json::from_str(
            r#"{"total": 3, "rows": [["2026-11-03", "txn_1", "payment", "stripe", null, 123456],
                ["2026-11-04", "=HYPERLINK(\"x\")", "refund", "shopify", "cash; \"or\" =1", -1250],
                ["2026-11-05", "\t+1", "later_kind", "later", "-2", 5]]}"#,
        )
        .unwrap();
        assert_eq!(
            receipts.csv(),
            "\u{feff}Date;Référence;Nature;Mode de règlement;Montant\r\n\
             03/11/2026;txn_1;Encaissement;Stripe;1234,56\r\n\
             04/11/2026;\"'=HYPERLINK(\"\"x\"\")\";Remboursement;\"Cash; \"\"or\"\" =1 (Shopify)\";-12,50\r\n\
             05/11/2026;' +1;Autre mouvement;'-2 (Autre source);0,05\r\n"
        );
    }

    #[rstest]
    #[case("2026", Some("2026"))]
    #[case("2026-11", Some("2026-11"))]
    #[case("2026-13", None)]
    #[case("1999", None)]
    #[case("+226", None)]
    #[case("", None)]
    fn a_month_or_a_year(#[case] text: &str, #[case] expected: Option<&str>) {
        assert_eq!(text.parse::<Period>().ok().map(|period| period.to_string()).as_deref(), expected);
    }
}
