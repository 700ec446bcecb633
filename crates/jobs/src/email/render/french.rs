//! Amounts, dates and punctuation as French readers expect them.

use chrono::{DateTime, NaiveDate, Timelike, Utc};

use super::foreign::unlinked;
use crate::{
    money::{Currency, MinorAmount},
    schedule::{Month, paris},
};

/// Writes "1 234,56 €".
pub(super) fn euros(cents: i64) -> String {
    MinorAmount::new(cents, Currency::EUR).to_string()
}

/// Writes "83 600 €": no cents where there are none.
pub(super) fn round_euros(cents: i64) -> String {
    let amount = euros(cents);
    if cents % 100 == 0 { amount.replacen(",00", "", 1) } else { amount }
}

/// Tenths of a percent, floored: nobody is told that a ceiling is reached one cent below it.
pub(super) fn per_mille(part: i64, whole: i64) -> i64 {
    let per_mille = i128::from(part.max(0)) * 1000 / i128::from(whole.max(1));
    i64::try_from(per_mille).unwrap_or(i64::MAX)
}

/// Writes "83,4 %", from tenths of a percent.
pub(super) fn percent(per_mille: i64) -> String {
    format!("{},{}\u{a0}%", grouped(per_mille / 10), per_mille % 10)
}

/// Writes "1 234": a narrow no-break space between thousands. Not for negatives.
pub(super) fn grouped(number: i64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

/// Writes "1er décembre 2026", with the day bound to its month.
pub(super) fn date(date: NaiveDate) -> String {
    paris::french(date).replacen(' ', "\u{a0}", 1)
}

/// Writes "30 novembre 2026 à 18 h 05", by the clocks of Paris.
pub(super) fn date_and_time(at: DateTime<Utc>) -> String {
    let local = paris::local(at);
    format!("{} à {}\u{a0}h\u{a0}{:02}", date(local.date_naive()), local.hour(), local.minute())
}

/// Writes "novembre 2026", with the year bound to its month.
pub(super) fn month(month: Month) -> String {
    month.french().replacen(' ', "\u{a0}", 1)
}

/// Writes "novembre".
pub(super) fn month_name(of: Month) -> String {
    let name = of.french();
    name.split(' ').next().unwrap_or_default().to_owned()
}

/// Writes "de novembre 2026", "d’avril 2026".
pub(super) fn of_month(of: Month) -> String {
    let name = month(of);
    let elides = name.starts_with(['a', 'o']);
    format!("{}{name}", if elides { "d’" } else { "de " })
}

/// Writes "4e trimestre 2026".
pub(super) fn quarter(month: Month) -> String {
    let ordinal = match month.month().div_ceil(3) {
        1 => "1er".to_owned(),
        number => format!("{number}e"),
    };
    format!("{ordinal}\u{a0}trimestre {}", month.year())
}

/// Returns a provider's name, as its users know it.
pub(super) fn source(source: &str) -> String {
    match source {
        "stripe" => "Stripe".to_owned(),
        "shopify" => "Shopify".to_owned(),
        other => unlinked(other, 60),
    }
}

/// Writes "a", "a et b", "a, b et c".
pub(super) fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [only] => only.clone(),
        [head @ .., last] => format!("{} et {last}", head.join(", ")),
    }
}

/// Puts the spaces of French punctuation where a plain space was written, so that templates stay readable: a
/// no-break space before `:`, `%`, `€` and inside « », a narrow one before `;`, `?` and `!`.
pub(super) fn typeset(text: &str) -> String {
    let mut typeset = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut previous = ' ';
    while let Some(char) = chars.next() {
        previous = match (previous, char, chars.peek()) {
            (_, ' ', Some(':' | '%' | '€' | '»')) | ('«', ' ', _) => '\u{a0}',
            (_, ' ', Some(';' | '?' | '!')) => '\u{202f}',
            _ => char,
        };
        typeset.push(previous);
    }
    typeset
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// Writes `_` for a narrow no-break space, `~` for a wide one.
    fn spaced(text: &str) -> String {
        text.replace('_', "\u{202f}").replace('~', "\u{a0}")
    }

    #[rstest]
    #[case(0, "0,00~€", "0~€")]
    #[case(-123_456, "-1_234,56~€", "-1_234,56~€")]
    #[case(8_360_000, "83_600,00~€", "83_600~€")]
    #[case(123_456_700, "1_234_567,00~€", "1_234_567~€")]
    #[case(5, "0,05~€", "0,05~€")]
    fn amounts(#[case] cents: i64, #[case] whole: &str, #[case] round: &str) {
        assert_eq!((euros(cents), round_euros(cents)), (spaced(whole), spaced(round)));
    }

    #[rstest]
    #[case(0, 100, "0,0~%")]
    #[case(-5, 100, "0,0~%")]
    #[case(8_359_999, 8_360_000, "99,9~%")]
    #[case(8_360_000, 8_360_000, "100,0~%")]
    #[case(8_360_001, 8_360_000, "100,0~%")]
    #[case(6_688_000, 8_360_000, "80,0~%")]
    #[case(100_000, 100, "100_000,0~%")]
    #[case(i64::MAX, 1, "922_337_203_685_477_580,7~%")]
    fn percentages(#[case] part: i64, #[case] whole: i64, #[case] expected: &str) {
        assert_eq!(percent(per_mille(part, whole)), spaced(expected));
    }

    #[rstest]
    #[case("2026-12-01", "1er~décembre 2026")]
    #[case("2027-01-31", "31~janvier 2027")]
    fn dates(#[case] day: NaiveDate, #[case] expected: &str) {
        assert_eq!(date(day), spaced(expected));
    }

    #[rstest]
    // Winter and summer time; the UTC day is not the one in Paris.
    #[case("2026-11-30T17:05:59Z", "30~novembre 2026 à 18~h~05")]
    #[case("2026-07-31T22:00:00Z", "1er~août 2026 à 0~h~00")]
    fn instants(#[case] at: DateTime<Utc>, #[case] expected: &str) {
        assert_eq!(date_and_time(at), spaced(expected));
    }

    #[rstest]
    #[case(1, "de janvier~2026", "1er~trimestre 2026")]
    #[case(4, "d’avril~2026", "2e~trimestre 2026")]
    #[case(8, "d’août~2026", "3e~trimestre 2026")]
    #[case(10, "d’octobre~2026", "4e~trimestre 2026")]
    #[case(12, "de décembre~2026", "4e~trimestre 2026")]
    fn months(#[case] month: u32, #[case] of: &str, #[case] in_quarter: &str) {
        let month = Month::new(2026, month).unwrap();
        assert_eq!((of_month(month), quarter(month)), (spaced(of), spaced(in_quarter)));
    }

    #[rstest]
    #[case(&[], "")]
    #[case(&["USD"], "USD")]
    #[case(&["USD", "GBP"], "USD et GBP")]
    #[case(&["USD", "GBP", "CHF"], "USD, GBP et CHF")]
    fn lists(#[case] items: &[&str], #[case] expected: &str) {
        let items: Vec<_> = items.iter().map(ToString::to_string).collect();
        assert_eq!(list(&items), expected);
    }

    #[rstest]
    #[case("Bonjour : « oui » ; non ? 5 % ! 3 €", "Bonjour~: «~oui~»_; non_? 5~%_! 3~€")]
    #[case("https://a.example/?b:c;d", "https://a.example/?b:c;d")]
    fn punctuation(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(typeset(text), spaced(expected));
    }
}
