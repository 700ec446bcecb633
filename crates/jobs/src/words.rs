//! Holds the French words for what the database stores under an English name: tasks, lanes, kinds of mail, states,
//! reasons.
//!
//! Pages, mails, the operator's digest, answers and the unsubscribe pages take their words from here, so that one
//! thing is called alike everywhere and no stored name reaches a reader.

use crate::{lane::Lane, mail_kind::MailKind, schedule::Task};

impl Task {
    /// Returns the words for the task, in the middle of a sentence.
    pub const fn french(self) -> &'static str {
        match self {
            Self::MarketingDay3 => "courriel J+3",
            Self::SyncIntegrations => "synchronisation Stripe et Shopify",
            Self::MonthlyReminders => "rappels mensuels",
            Self::MonthlySync => "synchronisation du mois et récapitulatifs",
            Self::CheckThresholds => "vérification des seuils",
        }
    }
}

impl Lane {
    /// Returns the words for the lane, in the middle of a sentence.
    pub const fn french(self) -> &'static str {
        match self {
            Self::Alerts => "alertes",
            Self::Reminders => "rappels mensuels",
            Self::Recaps => "récapitulatifs mensuels",
            Self::Marketing => "courriels J+3",
            Self::Stripe => "Stripe",
            Self::Shopify => "Shopify",
            Self::Months => "mois entiers",
        }
    }
}

impl MailKind {
    /// Returns the words for mails of this kind, in the middle of a sentence.
    pub const fn french(self) -> &'static str {
        match self {
            Self::ThresholdAlert => "alertes de seuil",
            Self::IntegrationTrouble => "connexions à refaire",
            Self::OperatorDigest => "courriels à l’exploitant",
            Self::MonthlyReminder => "rappels mensuels",
            Self::MonthlyRecap => "récapitulatifs mensuels",
            Self::MarketingDay3 => "courriels J+3",
        }
    }

    /// Returns what stands beside the sender's name in a mail of this kind.
    pub const fn section(self) -> &'static str {
        match self {
            Self::ThresholdAlert => "Alerte de seuil",
            Self::IntegrationTrouble => "Connexion à refaire",
            Self::OperatorDigest => "Exploitation",
            Self::MonthlyReminder => "Rappel mensuel",
            Self::MonthlyRecap => "Récapitulatif mensuel",
            Self::MarketingDay3 => "Découvrir Comptalyze",
        }
    }

    /// Returns why the reader gets a mail of this kind.
    pub const fn why(self) -> &'static str {
        match self {
            Self::ThresholdAlert => {
                "Vous recevez ce message parce que les alertes de seuil sont activées dans votre compte Comptalyze."
            }
            Self::IntegrationTrouble | Self::MonthlyRecap => {
                "Vous recevez ce message parce que votre compte Comptalyze est relié à une source de paiements."
            }
            Self::OperatorDigest => {
                "Vous recevez ce message parce que OPERATOR_EMAIL contient votre adresse, et seulement les jours où quelque chose demande votre attention."
            }
            Self::MonthlyReminder => {
                "Vous recevez ce message parce que le rappel mensuel est activé dans votre compte Comptalyze."
            }
            Self::MarketingDay3 => {
                "Vous recevez cette communication commerciale parce que vous avez créé un compte Comptalyze."
            }
        }
    }

    /// Returns what a reader stops by the mail's link, after "ne plus recevoir".
    pub const fn refused_as(self) -> &'static str {
        match self {
            Self::ThresholdAlert => "les alertes de seuil",
            Self::IntegrationTrouble | Self::OperatorDigest => "ces messages",
            Self::MonthlyReminder => "le rappel mensuel",
            Self::MonthlyRecap => "le récapitulatif mensuel",
            Self::MarketingDay3 => "les actualités et les offres",
        }
    }
}

/// Returns the words for a stored task; a name that this version does not know is not shown.
pub fn task(stored: &str) -> &'static str {
    stored.parse::<Task>().map_or("autre tâche", Task::french)
}

/// Returns the words for a stored lane; a name that this version does not know is not shown.
pub fn lane(stored: &str) -> &'static str {
    Lane::from_stored(stored).map_or("autre file", Lane::french)
}

/// Returns the words for a stored kind of mail; a name that this version does not know is not shown.
pub fn mail_kind(stored: &str) -> &'static str {
    MailKind::from_stored(stored).map_or("autres courriels", MailKind::french)
}

/// Says of a lane that what waits in it has waited for more than a day. The status page and the digest say it alike.
pub fn waits_too_long(stored_lane: &str) -> String {
    format!("La file «\u{a0}{}\u{a0}» attend depuis plus d’un jour", lane(stored_lane))
}

/// Says why somebody got nothing or a mail did not leave, by the stored code.
const REASONS: [(&str, &str); 48] = [
    // Of the person.
    ("user_deleted", "compte supprimé"),
    ("user_banned", "compte bloqué"),
    ("anonymous", "compte anonyme"),
    ("no_address", "sans adresse"),
    ("unconfirmed", "adresse non confirmée"),
    ("suppressed", "adresse écartée (rejet ou plainte)"),
    ("refused_by_user", "n’en veut pas"),
    ("already_planned", "déjà prévu"),
    ("already_sent", "déjà reçu"),
    ("unknown_price", "tarif inconnu"),
    ("paid_plan", "déjà abonné"),
    ("metadata_says_paid", "se dit abonné"),
    ("not_premium", "pas Premium"),
    // Of what the person wrote (17_user_input.sql).
    ("unreadable_amount", "montant saisi illisible"),
    ("unreadable_creation_date", "date de création illisible"),
    ("too_many_rows", "plus de 50\u{202f}000 saisies"),
    ("too_many_activities", "plus de 100 activités différentes"),
    ("unreadable_metadata", "métadonnées du compte illisibles"),
    ("unreadable_name", "nom illisible"),
    // Of the integration.
    ("inactive", "intégration désactivée"),
    ("connection_good", "connexion rétablie"),
    ("uncounted_currencies", "montants dans une autre devise"),
    ("left_alone", "lignes modifiées par l’utilisateur, laissées telles quelles"),
    ("unknown_movements", "mouvements d’un type inconnu"),
    ("unreadable_movements", "mouvements illisibles"),
    // Of a movement that does not count, or of its month (20_integrations.sql, 23_sync_totals.sql).
    ("amount_not_read", "montant illisible"),
    ("no_currency", "devise absente"),
    ("no_date", "date absente"),
    ("currency", "autre devise"),
    ("unresolved_currency", "connu dans la devise de l’acheteur seulement"),
    ("unknown_kind", "type inconnu"),
    ("pending", "paiement en attente"),
    ("not_lost", "litige ouvert ou gagné"),
    ("prevented", "litige évité"),
    ("gift_card", "carte cadeau"),
    ("store_credit", "avoir"),
    ("no_turnover", "sans chiffre d’affaires"),
    ("platform_reversal", "repris par une plateforme"),
    ("maybe_twice", "compté deux fois peut-être"),
    ("beyond_scope", "plus de 60 jours avant la lecture, hors de portée de l’autorisation Shopify"),
    ("refund_of_unknown_sale", "remboursement d’une vente jamais lue"),
    // The state of a mail, where nothing says more.
    ("planned", "prévu"),
    ("sealed", "envoi en cours"),
    ("expired", "trop tard pour l’envoyer"),
    ("skipped", "écarté"),
    ("refused", "refusé"),
    ("failed", "en échec"),
    ("unknown", "issue inconnue"),
];

/// Returns the words for a stored reason, which is a code of ours or a sentence in French already. A code that this
/// version does not know is not shown.
pub fn reason(stored: &str) -> &str {
    match REASONS.into_iter().find(|(code, _)| *code == stored) {
        Some((_, words)) => words,
        None if is_code(stored) => OTHER_REASON,
        None => stored,
    }
}

fn is_code(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

const OTHER_REASON: &str = "autre raison";
const UNKNOWN_STATE: &str = "dans un état inconnu";

/// Stands where a failure has no message.
pub const NO_EXPLANATION: &str = "sans explication";

/// Returns how a run went, by its stored status.
pub fn run_status(stored: &str) -> &'static str {
    match stored {
        "success" => "réussie",
        "error" => "échec",
        "partial" => "en partie",
        "running" => "en cours",
        _ => UNKNOWN_STATE,
    }
}

/// Returns in what state so many integrations are, by the stored name of the state.
pub fn integration_state(stored: &str, n: u64) -> &'static str {
    match stored {
        "good" => "à jour",
        "new" => agreeing(n, "jamais synchronisée", "jamais synchronisées"),
        "late" => "en retard de plus de 36\u{a0}h",
        "failing" => "en panne",
        "inactive" => agreeing(n, "désactivée", "désactivées"),
        _ => UNKNOWN_STATE,
    }
}

/// Returns who asked for a run, by its stored trigger.
pub fn trigger(stored: &str) -> &'static str {
    match stored {
        "cron" => "cron",
        "replay" => "rejeu",
        _ => "à la main",
    }
}

/// Returns words as they stand at the beginning of a line.
pub fn capitalized(words: &str) -> String {
    let mut letters = words.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

/// Returns the form that goes with a number. In French, zero is singular.
pub const fn agreeing<'a>(n: u64, one: &'a str, several: &'a str) -> &'a str {
    if n <= 1 { one } else { several }
}

/// Writes `1 courriel`, `2 courriels`, `0 courriel`.
pub fn counted(n: u64, one: &str, several: &str) -> String {
    format!("{n}\u{a0}{}", agreeing(n, one, several))
}

/// Writes `1 erreur`, `2 erreurs`, `0 erreurs`: callers know the answers of the routes with a plural after zero.
pub fn counted_in_answers(n: u64, one: &str, several: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { several })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, "0~envoyé")]
    #[case(1, "1~envoyé")]
    #[case(2, "2~envoyés")]
    fn numbers_agree(#[case] n: u64, #[case] expected: &str) {
        assert_eq!(counted(n, "envoyé", "envoyés"), expected.replace('~', "\u{a0}"));
    }

    #[test]
    fn no_stored_name_is_shown() {
        let unknown = "later_than_us";
        for words in [task(unknown), lane(unknown), mail_kind(unknown), reason(unknown)] {
            assert!(words.starts_with("autre"), "{words}");
        }
        assert_eq!(reason("Resend a refusé ce courriel : no"), "Resend a refusé ce courriel : no");
        for lane in Lane::ALL {
            assert_eq!(Lane::from_stored(lane.as_str()), Some(lane));
        }
        for kind in MailKind::ALL {
            assert_eq!(MailKind::from_stored(kind.as_str()), Some(kind));
            assert!(kind.lane().is_mail());
        }
    }

    /// These names stay between the database and the code, or are shown as the heading of a number.
    const NOT_SHOWN: [&str; 12] = [
        "bareme",
        "complete",
        "done",
        "free",
        "held",
        "lost",
        "provisional",
        "queued",
        "sent",
        "settled",
        "superseded",
        "vl",
    ];

    /// Every name that the database's one state chooses between (`case … then '…'`) or allows in a
    /// column that is shown (`check (status in (…))`) has words, or is listed as not shown. The
    /// kinds of mail are one list of the database, which `promises/catalogue.rs` compares with
    /// ours.
    #[test]
    fn every_stored_name_has_words() {
        let mut found = BTreeSet::new();
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../supabase/schemas")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "sql") {
                    found.extend(names_in(&fs::read_to_string(path).unwrap()));
                }
            }
        }
        for looked_for in ["metadata_says_paid", "refused_by_user", "alerts", "running", "expired", "failing"]
        {
            assert!(found.contains(looked_for), "the scan misses {looked_for}");
        }
        let unexplained: Vec<_> =
            found.iter().filter(|name| !NOT_SHOWN.contains(&name.as_str()) && !has_words(name)).collect();
        assert!(unexplained.is_empty(), "no words for {unexplained:?}");
    }

    fn has_words(stored: &str) -> bool {
        stored.parse::<Task>().is_ok()
            || Lane::from_stored(stored).is_some()
            || MailKind::from_stored(stored).is_some()
            || reason(stored) != OTHER_REASON
            || run_status(stored) != UNKNOWN_STATE
            || integration_state(stored, 1) != UNKNOWN_STATE
    }

    fn names_in(sql: &str) -> Vec<String> {
        let code: Vec<&str> = sql.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
        let code = code.join("\n");
        let pieces: Vec<&str> = code.split('\'').collect();
        let chosen = pieces.chunks_exact(2).filter_map(|piece| {
            let before = piece[0].trim_end();
            (before.ends_with("then") || before.ends_with("else")).then_some(piece[1])
        });
        let allowed = ["task", "lane", "kind", "status"].into_iter().flat_map(|column| {
            let start = format!("check ({column} in (");
            let lists = code.split(start.as_str()).skip(1).filter_map(|rest| rest.split(')').next());
            lists.flat_map(|list| list.split('\'').skip(1).step_by(2)).collect::<Vec<_>>()
        });
        chosen.chain(allowed).filter(|name| !name.is_empty() && is_code(name)).map(str::to_owned).collect()
    }

    #[test]
    fn capitals() {
        assert_eq!(
            ["récapitulatifs", "échec", "Stripe", ""].map(capitalized),
            ["Récapitulatifs", "Échec", "Stripe", ""]
        );
    }
}
