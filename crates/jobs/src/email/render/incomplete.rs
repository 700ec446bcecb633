//! Says what keeps a month's figures from being whole.

use super::{
    alert::capitalised,
    french::{self, date, list, month},
};
use crate::{
    email::{IncompleteMonth, UnreadSource},
    schedule::{Month, paris},
    words::agreeing,
};

/// Says that movements of a month are in no figure.
pub(super) const PARTIAL: &str = "Certaines opérations du mois n’ont pas pu être prises en compte. Comparez ce total avec \
                                  ce que vous avez reçu.";

/// Holds what a mail says of one month whose figures are not whole.
pub(super) struct Reserve {
    pub(super) of: Month,
    /// Money is missing; else there may be too much of it, or less than was paid.
    pub(super) is_missing: bool,
    pub(super) title: String,
    pub(super) words: String,
}

impl Reserve {
    pub(super) fn new(incomplete: &IncompleteMonth) -> Self {
        let is_missing = incomplete.partial || !incomplete.unread.is_empty();
        let sentences = [
            unread(incomplete),
            incomplete.partial.then(|| PARTIAL.to_owned()),
            maybe_twice(incomplete.maybe_twice).map(str::to_owned),
            passed_on(incomplete.passed_on).map(str::to_owned),
        ];
        Self {
            of: incomplete.month,
            is_missing,
            title: format!(
                "{} est {}",
                capitalised(&month(incomplete.month)),
                if is_missing { "incomplet" } else { "à vérifier" }
            ),
            words: sentences.into_iter().flatten().collect::<Vec<_>>().join(" "),
        }
    }
}

/// Says which sources were not read, and since when.
fn unread(incomplete: &IncompleteMonth) -> Option<String> {
    let said = sources(&incomplete.unread, incomplete.month)?;
    let live: Vec<_> =
        incomplete.unread.iter().filter(|unread| !unread.is_former && !unread.is_disconnected).collect();
    let advice = match live.as_slice() {
        [] => "Ajoutez ce qui manque avant de déclarer.".to_owned(),
        [unread] if incomplete.unread.len() > 1 => format!(
            "Vérifiez que {} est bien relié à Comptalyze, et ajoutez ce qui manque avant de déclarer.",
            french::source(&unread.source)
        ),
        [_] => "Vérifiez que cette source est bien reliée à Comptalyze, et ajoutez ce qui manque avant de \
                déclarer."
            .to_owned(),
        _ => "Vérifiez que ces sources sont bien reliées à Comptalyze, et ajoutez ce qui manque avant de \
              déclarer."
            .to_owned(),
    };
    Some(format!("{said} : ces montants sont incomplets. {advice}"))
}

/// Says of each source since when it was not read, as the beginning of a sentence; `None` where there is none.
pub(super) fn sources(unread: &[UnreadSource], of: Month) -> Option<String> {
    let of = month(of);
    let say = |unread: &UnreadSource| {
        let source = french::source(&unread.source);
        let who = match unread {
            UnreadSource { is_former: true, .. } => format!("l’ancien compte {source}"),
            UnreadSource { is_disconnected: true, .. } => {
                format!("{source} n’est plus relié à Comptalyze et")
            }
            _ => source,
        };
        match unread.since {
            Some(since) => format!("{who} n’a pas été lu depuis le {}", date(paris::date(since))),
            None if unread.wholly => format!("{who} n’a pas été lu pour {of}"),
            None => format!("{who} n’a pas été lu en entier pour {of}"),
        }
    };
    let said: Vec<String> = unread.iter().map(say).collect();
    (!said.is_empty()).then(|| capitalised(&list(&said)))
}

/// Says that some sales or refunds may be counted twice.
pub(super) fn maybe_twice(movements: u32) -> Option<&'static str> {
    (movements > 0).then(|| {
        agreeing(
            movements.into(),
            "Une vente ou un remboursement Shopify ressemble à un mouvement Stripe (même montant à quelques jours près, même \
             référence ou même commande). Si c’est le même, il est compté deux fois\u{a0}: vérifiez-le.",
            "Des ventes ou des remboursements Shopify ressemblent à des mouvements Stripe (même montant à quelques jours près, \
             même référence ou même commande). Si ce sont les mêmes, ils sont comptés deux fois\u{a0}: vérifiez-les.",
        )
    })
}

/// Says that a platform passed payments on, of which it may have kept a part.
pub(super) fn passed_on(payments: u32) -> Option<&'static str> {
    (payments > 0).then(|| {
        agreeing(
            payments.into(),
            "Un paiement Stripe vous a été reversé par une plateforme. Si elle a encaissé pour votre compte et gardé \
             sa commission, le client a payé davantage, et c’est ce qu’il a payé qui se déclare\u{a0}: vérifiez-le sur \
             le relevé de la plateforme.",
            "Des paiements Stripe vous ont été reversés par une plateforme. Si elle a encaissé pour votre compte et \
             gardé sa commission, vos clients ont payé davantage, et c’est ce qu’ils ont payé qui se déclare\u{a0}: \
             vérifiez-le sur le relevé de la plateforme.",
        )
    })
}

/// Says which sources could not be read; of those that are `not_theirs` the user has nothing to mend.
pub(super) fn unread_sources(unread: &[String], not_theirs: &[String]) -> Option<String> {
    let (ours, theirs): (Vec<_>, Vec<_>) = unread.iter().partition(|source| not_theirs.contains(source));
    let named = |sources: Vec<&String>| -> Vec<String> {
        sources.into_iter().map(|source| french::source(source)).collect()
    };
    let said = [unread_of_theirs(&named(theirs)), unread_of_ours(&named(ours))];
    let said: Vec<String> = said.into_iter().flatten().collect();
    (!said.is_empty()).then(|| said.join(" "))
}

fn unread_of_theirs(sources: &[String]) -> Option<String> {
    Some(match sources {
        [] => return None,
        [source] => {
            format!("{source} n’a pas pu être lu. Vérifiez que cette source est bien reliée à Comptalyze.")
        }
        sources => format!(
            "{} n’ont pas pu être lus. Vérifiez que ces sources sont bien reliées à Comptalyze.",
            list(sources)
        ),
    })
}

fn unread_of_ours(sources: &[String]) -> Option<String> {
    let again = "il n’y a rien à refaire, la lecture est tentée de nouveau à chaque synchronisation.";
    Some(match sources {
        [] => return None,
        [source] => {
            format!("{source} n’a pas pu être lu. Votre connexion n’est pas en cause\u{a0}: {again}")
        }
        sources => format!(
            "{} n’ont pas pu être lus. Vos connexions ne sont pas en cause\u{a0}: {again}",
            list(sources)
        ),
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn source(source: &str, since: Option<&str>, wholly: bool) -> UnreadSource {
        let since = since.map(|at| at.parse().unwrap());
        UnreadSource { source: source.to_owned(), since, wholly, is_former: false, is_disconnected: false }
    }

    fn said(unread: &[UnreadSource], partial: bool) -> Reserve {
        let month = Month::new(2026, 11).unwrap();
        let of = IncompleteMonth { month, unread: unread.to_vec(), maybe_twice: 0, passed_on: 0, partial };
        let reserve = Reserve::new(&of);
        Reserve { words: reserve.words.replace('\u{a0}', " "), ..reserve }
    }

    #[rstest]
    // By the clocks of Paris.
    #[case(
        Some("2026-11-09T23:30:00Z"),
        false,
        "Stripe n’a pas été lu depuis le 10 novembre 2026 : ces montants"
    )]
    #[case(None, true, "Stripe n’a pas été lu pour novembre 2026 : ces montants sont incomplets.")]
    #[case(None, false, "Stripe n’a pas été lu en entier pour novembre 2026 : ces montants")]
    fn a_source_that_was_not_read(#[case] since: Option<&str>, #[case] wholly: bool, #[case] expected: &str) {
        let reserve = said(&[source("stripe", since, wholly)], false);
        assert!(reserve.words.starts_with(expected), "{}", reserve.words);
        assert!(reserve.is_missing && reserve.title.ends_with("est incomplet"), "{}", reserve.title);
    }

    /// Nobody is asked to check a connection that was ended on purpose.
    #[rstest]
    #[case(false, "Stripe n’est plus relié à Comptalyze et n’a pas été lu depuis le 10 novembre 2026 : ces")]
    #[case(true, "L’ancien compte Stripe n’a pas été lu depuis le 10 novembre 2026 : ces montants sont")]
    fn a_source_that_ended(#[case] is_former: bool, #[case] expected: &str) {
        let since = Some("2026-11-10T12:00:00Z");
        let ended = UnreadSource { is_former, is_disconnected: !is_former, ..source("stripe", since, false) };
        let alone = said(std::slice::from_ref(&ended), false).words;
        assert!(alone.starts_with(expected), "{alone}");
        assert!(alone.ends_with("incomplets. Ajoutez ce qui manque avant de déclarer."), "{alone}");
        let both = said(&[source("shopify", None, true), ended], false).words;
        assert!(both.contains("Vérifiez que Shopify est bien relié à Comptalyze, et ajoutez"), "{both}");
    }

    #[test]
    fn several_sources_and_what_else_is_missing() {
        let sources = [source("shopify", None, true), source("stripe", Some("2026-11-10T12:00:00Z"), false)];
        let reserve = said(&sources, true);
        assert!(
            reserve.words.starts_with(
                "Shopify n’a pas été lu pour novembre 2026 et Stripe n’a pas été lu depuis le 10 novembre 2026 : ces"
            ),
            "{}",
            reserve.words
        );
        assert!(
            reserve.words.contains("ces sources") && reserve.words.ends_with(PARTIAL),
            "{}",
            reserve.words
        );
    }
}
