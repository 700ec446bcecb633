//! Holds the French words for what the database stores under an English name: tasks, lanes, kinds of mail, states,
//! reasons.
//!
//! Pages, mails, the operator's digest, answers and the unsubscribe pages take their words from here, so that one
//! thing is called alike everywhere and no stored name reaches a reader.

mod user;

pub use self::user::{
    consequence, item_status, means, month_worth, movement_kind, one_mail, plan, provider, threshold,
};
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
            Self::DefinitiveMonth => "totaux définitifs",
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
            Self::DefinitiveMonth => "Total définitif du mois",
            Self::MarketingDay3 => "Découvrir Comptalyze",
        }
    }

    /// Returns why the reader gets a mail of this kind.
    pub const fn why(self) -> &'static str {
        match self {
            Self::ThresholdAlert => {
                "Vous recevez ce message parce que les alertes de seuil sont activées dans votre compte Comptalyze."
            }
            Self::IntegrationTrouble | Self::MonthlyRecap | Self::DefinitiveMonth => {
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
            Self::MonthlyRecap | Self::DefinitiveMonth => "le récapitulatif mensuel",
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
const REASONS: [(&str, &str); 57] = [
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
    ("plan_suspended", "abonnement suspendu, faute de paiement"),
    ("metadata_says_paid", "se dit abonné"),
    ("not_premium", "pas Premium"),
    ("month_incomplete", "mois pas encore lu en entier"),
    ("month_unchanged", "total inchangé"),
    // Of what the person wrote (17_user_input.sql).
    ("unreadable_amount", "montant saisi illisible"),
    ("unreadable_creation_date", "date de création illisible"),
    ("too_many_rows", "plus de 50\u{202f}000 saisies"),
    ("too_slow", "trop de données pour être lues à temps"),
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
    ("unlisted_movements", "mouvements déjà lus, absents de la liste"),
    ("recap_waits", "récapitulatif en attente d’une nouvelle lecture"),
    // Of a movement that does not count, or of its month (20_integrations.sql, 27_months.sql).
    ("amount_not_read", "montant illisible"),
    ("no_currency", "devise absente"),
    ("no_date", "date absente"),
    ("currency", "autre devise"),
    ("unresolved_currency", "connu dans la devise de l’acheteur seulement"),
    ("unknown_kind", "type inconnu"),
    ("pending", "paiement ou remboursement en attente"),
    ("not_lost", "litige ouvert ou gagné"),
    ("prevented", "litige évité"),
    ("gift_card", "carte cadeau"),
    ("store_credit", "avoir"),
    ("no_turnover", "sans chiffre d’affaires"),
    ("platform_reversal", "repris par une plateforme"),
    ("maybe_twice", "compté deux fois peut-être"),
    ("beyond_scope", "plus de 60 jours avant la lecture, hors de portée de l’autorisation Shopify"),
    ("unlisted_payment", "payé d’après la commande, absent de la liste des encaissements"),
    ("refund_of_unknown_sale", "remboursement d’une vente jamais lue"),
    ("passed_on", "versé par une plateforme, peut-être sans sa commission"),
    ("doubted_list", "liste qui ne montre plus ce qu’elle montrait, ou vide depuis"),
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
    match REASONS.iter().chain(&user::REASONS).find(|(code, _)| *code == stored) {
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

/// Says what the mail service reported of a mail that it had accepted, by the stored name (`jobs.feedback_rank`).
pub fn feedback(stored: &str) -> &'static str {
    match stored {
        "bounced" | "refused" => {
            "L’adresse n’existe pas ou refuse les courriels. Corrigée par l’utilisateur, elle reçoit ce qui est encore vrai."
        }
        "suppressed" => {
            "Resend n’envoie plus rien à cette adresse (Resend, Suppressions). Retirée de la liste, elle reçoit ce qui est encore vrai."
        }
        "failed" => "Resend n’a pas pu envoyer ce courriel après l’avoir accepté, deux fois de suite.",
        "mailbox_full" => "La boîte aux lettres était pleine, deux fois de suite.",
        "returned" => "La boîte aux lettres n’a pas pris ce courriel, ou une réponse automatique en a l’air.",
        "complained" => "Le lecteur l’a signalé comme indésirable : il ne reçoit plus rien.",
        "delayed" => "La remise est retardée ; Resend réessaie.",
        _ => OTHER_REASON,
    }
}

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
        "gone" => agreeing(n, "retirée", "retirées"),
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
mod tests;
