//! Reads the address of the page: which user and month it is about, and what it says after an action. Never a secret, and
//! never a mail address: both would be in logs by now.

use uuid::Uuid;

use super::notice::NOTICES;
use crate::{
    operations::user::{facts::Opened, receipts::Period},
    schedule::Month,
};

/// Holds what an address asks for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Query {
    pub(super) notice: Option<&'static str>,
    pub(super) user: Option<Uuid>,
    pub(super) opened: Opened,
    /// A file of receipts instead of the page, and which part of it, from 0 on.
    pub(super) receipts: Option<(Period, u32)>,
}

impl Query {
    /// An error is a French message.
    pub(super) fn read(query: &str, is_get: bool) -> Result<Self, String> {
        let mut read = Self::default();
        let (mut period, mut part) = (None, 0);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "secret" => {
                    return Err("Le secret ne se met jamais dans l’adresse : elle reste dans les journaux. Changez CRON_SECRET s’il vient d’y être écrit.".into());
                }
                "fait" if is_get => {
                    read.notice = NOTICES.iter().find(|(known, _)| *known == value).map(|(_, text)| *text);
                }
                "user" if is_get => read.user = Some(value.parse().map_err(|_| wrong("user", "un UUID est attendu ; une adresse se cherche par le formulaire, jamais dans l’adresse de la page"))?),
                "month" if is_get => {
                    let month: Month = value.parse().map_err(|_| wrong("month", "AAAA-MM est attendu"))?;
                    read.opened.month = Some(month);
                }
                "only" if is_get && value == "uncounted" => read.opened.uncounted = true,
                "page" if is_get => read.opened.page = number("page", &value)?,
                "csv" if is_get => {
                    period = Some(value.parse().map_err(|_| wrong("csv", "AAAA ou AAAA-MM est attendu"))?);
                }
                "part" if is_get => part = number("part", &value)?,
                // The name is the caller's: cut, and escaped like every text.
                name => {
                    return Err(format!("Paramètre inconnu : {}.", name.chars().take(40).collect::<String>()));
                }
            }
        }
        read.receipts = period.map(|period| (period, part));
        if read.user.is_none() && (read.opened != Opened::default() || read.receipts.is_some()) {
            return Err(wrong("user", "l’identifiant de l’utilisateur est attendu"));
        }
        Ok(read)
    }
}

fn wrong(name: &str, what: &str) -> String {
    format!("Paramètre {name} : {what}.")
}

/// Reads a number that people count from 1; it comes back from 0 on.
fn number(name: &str, value: &str) -> Result<u32, String> {
    let number = value.parse::<u32>().ok().filter(|number| (1..=100_000).contains(number));
    number.map(|number| number - 1).ok_or_else(|| wrong(name, "un nombre à partir de 1 est attendu"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("", Ok(None))]
    #[case("fait=rejeu", Ok(Some("Le rejeu est lancé.")))]
    // Only our own words are shown.
    #[case("fait=%3Cscript%3E", Ok(None))]
    #[case("secret=abc", Err("dans l’adresse"))]
    #[case("fait=rejeu&secret=", Err("dans l’adresse"))]
    #[case("tasks=2", Err("tasks"))]
    #[case("user=camille%40example.test", Err("jamais dans l’adresse"))]
    #[case("month=2026-11", Err("identifiant"))]
    #[case("user=5f0c0e52-8a4e-4c4b-9b0c-2f6d1a7e0001&month=novembre", Err("AAAA-MM"))]
    #[case("user=5f0c0e52-8a4e-4c4b-9b0c-2f6d1a7e0001&page=0", Err("à partir de 1"))]
    #[case("user=5f0c0e52-8a4e-4c4b-9b0c-2f6d1a7e0001&only=all", Err("only"))]
    #[case("user=5f0c0e52-8a4e-4c4b-9b0c-2f6d1a7e0001&csv=99", Err("AAAA"))]
    fn the_address(#[case] query: &str, #[case] expected: Result<Option<&str>, &str>) {
        match (Query::read(query, true), expected) {
            (Ok(read), Ok(expected)) => {
                let said = read.notice;
                assert!(said.unwrap_or_default().starts_with(expected.unwrap_or_default()), "{said:?}");
                assert_eq!(said.is_some(), expected.is_some());
            }
            (Err(said), Err(expected)) => {
                assert!(
                    said.contains(expected) && !said.contains("abc") && !said.contains("camille"),
                    "{said}"
                );
            }
            (said, expected) => panic!("{said:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn a_users_month() {
        let query =
            "user=5f0c0e52-8a4e-4c4b-9b0c-2f6d1a7e0001&month=2026-11&only=uncounted&page=3&csv=2026&part=2";
        let read = Query::read(query, true).unwrap();
        assert_eq!(read.opened, Opened { month: "2026-11".parse().ok(), uncounted: true, page: 2 });
        assert_eq!(read.receipts.map(|(period, part)| (period.to_string(), part)), Some(("2026".into(), 1)));
        // A form says everything in its body.
        assert!(Query::read(query, false).is_err());
    }
}
