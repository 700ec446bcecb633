//! Says what typed and imported rows of one month make of a figure: it may count money twice, or the user has said.

use super::french::{euros, list, month, month_name};
use crate::{
    email::{BooksVerdict, MonthTwice},
    schedule::Month,
};

/// Holds what a mail says of typed and imported turnover.
#[derive(Default)]
pub(super) struct Twice {
    /// Speaks of the mail's month; it is `None` where there is nothing to say.
    pub(super) month: Option<Remark>,
    /// Speaks of the other months in the mail's figures of which nothing is confirmed.
    pub(super) others: Option<String>,
}

/// Represents a remark on the mail's month.
pub(super) struct Remark {
    pub(super) title: &'static str,
    pub(super) words: String,
    /// Is what the link to the confirmation says; `None` where there is nothing to confirm.
    pub(super) label: Option<&'static str>,
    /// Says that nothing is confirmed.
    pub(super) is_open: bool,
}

impl Remark {
    /// Says of a total that both sides are in it, and may be one.
    pub(super) fn open(words: String) -> Self {
        Self {
            title: "Attention au double compte",
            words,
            label: Some("Dire si ce sont les mêmes encaissements"),
            is_open: true,
        }
    }

    /// Says that both sides count, and that nothing of them can be the same.
    pub(super) fn beside(both: &str) -> Self {
        Self {
            title: "Des montants saisis s’y ajoutent",
            words: format!("{both} Les deux comptent."),
            label: None,
            is_open: false,
        }
    }

    /// Repeats what the user has confirmed.
    pub(super) fn settled(verdict: BooksVerdict, both: &str) -> Self {
        let (title, then) = match verdict {
            BooksVerdict::Distinct => (
                "Saisies et imports, deux encaissements distincts",
                "Vous avez indiqué que ces encaissements sont distincts : les deux comptent.",
            ),
            BooksVerdict::Same => (
                "Saisies et imports, les mêmes encaissements",
                "Vous avez indiqué que ce sont les mêmes encaissements : seul le plus élevé des deux montants compte.",
            ),
        };
        Self { title, words: format!("{both} {then}"), label: Some("Modifier ma réponse"), is_open: false }
    }

    /// Returns the kind of the box that it stands in.
    pub(super) fn kind(&self) -> &'static str {
        if self.is_open { "near" } else { "check" }
    }
}

impl Twice {
    /// Names the months of one year in which money may be counted twice, for figures that go over
    /// several of them. `of` has a remark of its own and is not named.
    pub(super) fn others(mixed: &[MonthTwice], of: Month, counts: impl Fn(Month) -> bool) -> Option<String> {
        let others: Vec<Month> =
            mixed.iter().map(|mixed| mixed.month).filter(|other| *other != of && counts(*other)).collect();
        if others.is_empty() {
            return None;
        }
        Some(format!(
            "{}, vos enregistrements contiennent à la fois des saisies et des imports : s’ils sont les mêmes \
             encaissements, ils sont comptés deux fois ici.",
            in_months(&others)
        ))
    }
}

/// Says, with a space before it, that what was typed may be money in currencies that are not counted.
pub(super) fn converted(uncounted: Option<&str>) -> String {
    uncounted.map_or_else(String::new, |currencies| {
        format!(
            " Si elle convertit les opérations en {currencies}, qui ne sont pas importées, ce sont des encaissements \
             distincts : les deux comptent."
        )
    })
}

/// Writes "vous avez saisi 2 500,00 € et Comptalyze a importé 1 500,00 €".
pub(super) fn both_sides(typed: i64, imported: i64) -> String {
    format!("vous avez saisi {} et Comptalyze a importé {}", euros(typed), euros(imported))
}

/// Writes "En janvier, en mars et en avril 2026"; more than three are "De janvier à août 2026, en 5 mois".
fn in_months(months: &[Month]) -> String {
    match months {
        [] => String::new(),
        [first, .., last] if months.len() > 3 => {
            format!("Entre {} et {}, pour {}\u{a0}mois", month_name(*first), month(*last), months.len())
        }
        [head @ .., last] => {
            let mut names: Vec<String> =
                head.iter().map(|other| format!("en {}", month_name(*other))).collect();
            names.push(format!("en {}", month(*last)));
            super::alert::capitalised(&list(&names))
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&[3], "En mars\u{a0}2026")]
    #[case(&[1, 3, 4], "En janvier, en mars et en avril\u{a0}2026")]
    #[case(&[1, 2, 3, 6, 8], "Entre janvier et août\u{a0}2026, pour 5\u{a0}mois")]
    fn months_are_named_or_counted(#[case] months: &[u32], #[case] expected: &str) {
        let months: Vec<_> = months.iter().map(|month| Month::new(2026, *month).unwrap()).collect();
        assert_eq!(in_months(&months), expected);
    }
}
