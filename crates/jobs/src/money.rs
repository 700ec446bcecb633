//! Amounts: whole minor units of a currency, never floats.
//!
//! ```
//! # use jobs::money::{Currency, MinorAmount};
//! let price = MinorAmount::from_decimal_str("1234.5", Currency::EUR).unwrap();
//! assert_eq!(price.minor(), 123_450);
//! assert_eq!(price.to_string(), "1\u{202f}234,50\u{a0}€");
//! ```
//!
//! How many minor units a currency has follows Stripe ("Supported currencies": zero-decimal, three-decimal and
//! special cases), not ISO 4217: the two differ for ISK and UGX, which Stripe keeps in hundredths. Amounts of
//! Shopify are decimal strings and take the same table, so that one payment seen by both has one amount.
//! Pure: no I/O, no clock.

use std::fmt;
use std::str::FromStr;

use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const ZERO_DECIMAL: [&[u8; 3]; 15] = [
    b"BIF", b"CLP", b"DJF", b"GNF", b"JPY", b"KMF", b"KRW", b"MGA", b"PYG", b"RWF", b"VND", b"VUV", b"XAF",
    b"XOF", b"XPF",
];
const THREE_DECIMAL: [&[u8; 3]; 5] = [b"BHD", b"JOD", b"KWD", b"OMR", b"TND"];

/// Says what is wrong with an amount. Says nothing of the amount itself: it may come from anywhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MoneyError {
    /// The code does not consist of three letters.
    #[error("not a currency code")]
    NotACurrency,
    /// The text is not `-?digits[.digits]`.
    #[error("not a decimal amount")]
    NotADecimal,
    /// The amount is finer than the currency's minor unit: rounding would invent or lose money.
    #[error("more decimals than the currency has")]
    TooPrecise,
    /// The amount is beyond what 64 bits of minor units hold.
    #[error("amount out of range")]
    OutOfRange,
    /// Two currencies meet in one sum.
    #[error("amounts in different currencies")]
    CurrencyMismatch,
}

/// Represents an ISO 4217 code in upper case. Unknown codes are accepted, with two decimals: they
/// are kept and reported, never counted as euros.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Currency([u8; 3]);

impl Currency {
    /// The euro is the only currency that counts in a French turnover.
    pub const EUR: Self = Self(*b"EUR");

    /// Returns the code, e.g. `EUR`.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("???")
    }

    /// Decimals of the minor unit: 0, 2 or 3.
    pub fn exponent(self) -> u32 {
        if ZERO_DECIMAL.contains(&&self.0) {
            0
        } else if THREE_DECIMAL.contains(&&self.0) {
            3
        } else {
            2
        }
    }
}

impl FromStr for Currency {
    type Err = MoneyError;

    /// Stripe writes `eur`, Shopify `EUR`.
    fn from_str(code: &str) -> Result<Self, MoneyError> {
        let code: [u8; 3] = code.as_bytes().try_into().map_err(|_| MoneyError::NotACurrency)?;
        if !code.iter().all(u8::is_ascii_alphabetic) {
            return Err(MoneyError::NotACurrency);
        }
        Ok(Self(code.map(|letter| letter.to_ascii_uppercase())))
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Represents a signed amount in minor units of its currency.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct MinorAmount {
    minor: i64,
    currency: Currency,
}

impl MinorAmount {
    /// Takes `minor` whole minor units, e.g. cents.
    pub const fn new(minor: i64, currency: Currency) -> Self {
        Self { minor, currency }
    }

    /// Returns the whole minor units.
    pub const fn minor(self) -> i64 {
        self.minor
    }

    pub const fn currency(self) -> Currency {
        self.currency
    }

    /// Reads `-12.34` without passing through a float. Trailing zeros beyond the minor unit are harmless
    /// (`1000.0` yen); any other digit there is [`MoneyError::TooPrecise`].
    pub fn from_decimal_str(text: &str, currency: Currency) -> Result<Self, MoneyError> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (whole, fraction) = match digits.split_once('.') {
            Some((_, "")) => return Err(MoneyError::NotADecimal),
            Some(parts) => parts,
            None => (digits, ""),
        };
        let all_digits = whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !all_digits {
            return Err(MoneyError::NotADecimal);
        }

        let places = currency.exponent() as usize;
        let fraction = fraction.trim_end_matches('0');
        if fraction.len() > places {
            return Err(MoneyError::TooPrecise);
        }
        let padding = std::iter::repeat_n(b'0', places - fraction.len());
        // Counting downwards for negatives reaches i64::MIN, which has no positive counterpart.
        let minor = whole
            .bytes()
            .chain(fraction.bytes())
            .chain(padding)
            .try_fold(0_i64, |sum, byte| {
                let digit = i64::from(byte - b'0');
                let sum = sum.checked_mul(10)?;
                if negative { sum.checked_sub(digit) } else { sum.checked_add(digit) }
            })
            .ok_or(MoneyError::OutOfRange)?;
        Ok(Self { minor, currency })
    }

    /// Returns the sum, in the common currency.
    pub fn checked_add(self, other: Self) -> Result<Self, MoneyError> {
        if self.currency != other.currency {
            return Err(MoneyError::CurrencyMismatch);
        }
        let minor = self.minor.checked_add(other.minor).ok_or(MoneyError::OutOfRange)?;
        Ok(Self { minor, ..self })
    }

    /// Returns the same amount the other way.
    pub fn checked_neg(self) -> Result<Self, MoneyError> {
        Ok(Self { minor: self.minor.checked_neg().ok_or(MoneyError::OutOfRange)?, ..self })
    }

    /// Returns the amount in major units, with all decimals of the currency (`12.30`).
    pub fn to_decimal(self) -> Decimal {
        Decimal::new(self.minor, self.currency.exponent())
    }
}

/// Writes French: `-1 234,56 €`. U+202F stands between thousands, U+00A0 before the unit, and an
/// ASCII hyphen before negatives: what `Intl.NumberFormat('fr-FR')` writes in the web application,
/// so that both show one amount alike. Other currencies show their code instead of a symbol.
impl fmt::Display for MinorAmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = self.currency.exponent();
        let unit = 10_u64.pow(places);
        let (whole, fraction) = (self.minor.unsigned_abs() / unit, self.minor.unsigned_abs() % unit);
        if self.minor < 0 {
            f.write_str("-")?;
        }
        let digits = whole.to_string();
        for (index, digit) in digits.char_indices() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                f.write_str("\u{202f}")?;
            }
            write!(f, "{digit}")?;
        }
        if places > 0 {
            write!(f, ",{fraction:0width$}", width = places as usize)?;
        }
        match self.currency {
            Currency::EUR => f.write_str("\u{a0}€"),
            other => write!(f, "\u{a0}{other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn currency(code: &str) -> Currency {
        code.parse().unwrap()
    }

    #[rstest]
    #[case("EUR", 2)]
    #[case("eur", 2)]
    #[case("JPY", 0)]
    #[case("xpf", 0)]
    #[case("KWD", 3)]
    // Stripe's special cases and the ones that are often taken for zero-decimal.
    #[case("ISK", 2)]
    #[case("UGX", 2)]
    #[case("HUF", 2)]
    #[case("TWD", 2)]
    fn exponents(#[case] code: &str, #[case] expected: u32) {
        assert_eq!(currency(code).exponent(), expected);
    }

    #[rstest]
    #[case("")]
    #[case("EU")]
    #[case("EURO")]
    #[case("E R")]
    #[case("€")]
    #[case("12€")]
    fn not_currencies(#[case] code: &str) {
        assert_eq!(code.parse::<Currency>(), Err(MoneyError::NotACurrency));
    }

    #[rstest]
    #[case("12.34", "EUR", Ok(1234))]
    #[case("-12.34", "EUR", Ok(-1234))]
    #[case("12.3", "EUR", Ok(1230))]
    #[case("12", "EUR", Ok(1200))]
    #[case("0.10", "EUR", Ok(10))]
    #[case("-0.0", "EUR", Ok(0))]
    #[case("12.3400", "EUR", Ok(1234))]
    #[case("12.345", "EUR", Err(MoneyError::TooPrecise))]
    #[case("1000.0", "JPY", Ok(1000))]
    #[case("1000", "JPY", Ok(1000))]
    #[case("1000.5", "JPY", Err(MoneyError::TooPrecise))]
    #[case("1.234", "KWD", Ok(1234))]
    #[case("92233720368547758.07", "EUR", Ok(i64::MAX))]
    #[case("-92233720368547758.08", "EUR", Ok(i64::MIN))]
    #[case("92233720368547758.08", "EUR", Err(MoneyError::OutOfRange))]
    #[case("99999999999999999999999999999999", "EUR", Err(MoneyError::OutOfRange))]
    #[case("", "EUR", Err(MoneyError::NotADecimal))]
    #[case("-", "EUR", Err(MoneyError::NotADecimal))]
    #[case(".5", "EUR", Err(MoneyError::NotADecimal))]
    #[case("5.", "EUR", Err(MoneyError::NotADecimal))]
    #[case("1,50", "EUR", Err(MoneyError::NotADecimal))]
    #[case("1e3", "EUR", Err(MoneyError::NotADecimal))]
    #[case("+1", "EUR", Err(MoneyError::NotADecimal))]
    #[case("--1", "EUR", Err(MoneyError::NotADecimal))]
    #[case("1.2.3", "EUR", Err(MoneyError::NotADecimal))]
    #[case("NaN", "EUR", Err(MoneyError::NotADecimal))]
    #[case("١٢", "EUR", Err(MoneyError::NotADecimal))]
    fn decimals(#[case] text: &str, #[case] code: &str, #[case] expected: Result<i64, MoneyError>) {
        assert_eq!(MinorAmount::from_decimal_str(text, currency(code)).map(MinorAmount::minor), expected);
    }

    #[rstest]
    #[case(0, "EUR", "0,00 €")]
    #[case(5, "EUR", "0,05 €")]
    #[case(123_456, "EUR", "1_234,56 €")]
    #[case(-123_456, "EUR", "-1_234,56 €")]
    #[case(100_000_000, "EUR", "1_000_000,00 €")]
    #[case(99_999, "EUR", "999,99 €")]
    #[case(1234, "JPY", "1_234 JPY")]
    #[case(-1234, "KWD", "-1,234 KWD")]
    #[case(i64::MIN, "EUR", "-92_233_720_368_547_758,08 €")]
    fn french(#[case] minor: i64, #[case] code: &str, #[case] expected: &str) {
        let expected = expected.replace(' ', "\u{a0}").replace('_', "\u{202f}");
        assert_eq!(MinorAmount::new(minor, currency(code)).to_string(), expected);
    }

    #[test]
    fn two_currencies_do_not_add_up() {
        let (euro, dollar) = (MinorAmount::new(1, Currency::EUR), MinorAmount::new(1, currency("USD")));
        assert_eq!(euro.checked_add(dollar), Err(MoneyError::CurrencyMismatch));
    }

    #[test]
    fn a_currency_is_a_plain_string_in_json() {
        assert_eq!(serde_json::to_string(&Currency::EUR).unwrap(), r#""EUR""#);
        assert_eq!(serde_json::from_str::<Currency>(r#""usd""#).unwrap(), currency("USD"));
        assert!(serde_json::from_str::<Currency>(r#""dollars""#).is_err());
    }

    fn any_currency() -> impl Strategy<Value = Currency> {
        prop::sample::select(vec!["EUR", "USD", "JPY", "KWD", "ISK"]).prop_map(currency)
    }

    proptest! {
        #[test]
        fn a_decimal_reads_back(minor: i64, currency in any_currency()) {
            let amount = MinorAmount::new(minor, currency);
            let read = MinorAmount::from_decimal_str(&amount.to_decimal().to_string(), currency);
            prop_assert_eq!(read, Ok(amount));
        }

        #[test]
        fn french_keeps_every_digit(minor: i64, currency in any_currency()) {
            let shown = MinorAmount::new(minor, currency).to_string();
            let digits: String = shown.chars().filter(|c| c.is_ascii_digit() || *c == '-').collect();
            prop_assert_eq!(digits.parse::<i64>().unwrap(), minor);
        }

        #[test]
        fn sums_are_exact_or_refused(a: i64, b: i64) {
            let sum = MinorAmount::new(a, Currency::EUR).checked_add(MinorAmount::new(b, Currency::EUR));
            let exact = i64::try_from(i128::from(a) + i128::from(b)).map_err(|_| MoneyError::OutOfRange);
            prop_assert_eq!(sum.map(MinorAmount::minor), exact);
        }

        #[test]
        fn no_text_panics(text in "\\PC*", currency in any_currency()) {
            let _ = MinorAmount::from_decimal_str(&text, currency);
            let _ = text.parse::<Currency>();
        }
    }
}
