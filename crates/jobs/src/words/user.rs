//! Holds the words of the page of one user: why a mail did not leave or a movement does not count, by the stored code.

use crate::{
    mail_kind::MailKind,
    urssaf::{Consequence, Threshold},
};

/// Says what the functions of `65_user.sql` and `66_user_actions.sql` answer beside the reasons of all others.
pub(super) const REASONS: [(&str, &str); 20] = [
    // Of a mail that was not planned.
    ("not_due_yet", "pas encore dû"),
    ("no_connection", "aucune connexion active"),
    ("not_kept", "trop ancien : le détail n’est gardé que 90 jours"),
    ("month_not_read", "le mois entier n’a pas été lu"),
    ("month_waits", "la lecture du mois attend dans la file"),
    ("month_failed", "la lecture du mois a échoué"),
    ("data_only", "le mois a été lu sans récapitulatif"),
    ("no_movement", "aucun mouvement à raconter dans ce mois"),
    (
        "changed_since",
        "rien ne s’y oppose aujourd’hui : un réglage, une adresse ou une offre a changé depuis",
    ),
    ("signed_up_since", "inscription postérieure"),
    ("run_missed", "l’exécution de ce mois n’a pas eu lieu"),
    ("told_by_reminder", "le rappel du mois dit le total définitif"),
    ("waits_for_run", "part avec la prochaine exécution"),
    ("no_longer_true", "n’est plus vrai : le palier a été retiré depuis"),
    // Of a movement.
    ("left_out", "compte retiré des livres"),
    ("before_connection", "mois d’avant la connexion : il est à l’utilisateur"),
    ("reported_twice", "même argent que chez Stripe, où il est compté"),
    // Of an address.
    ("bounced", "retour définitif"),
    ("complained", "plainte"),
    // Of a mail that was.
    ("sent", "envoyé"),
];

/// Returns the words for a stored kind of movement; a name that this version does not know is not shown.
pub fn movement_kind(stored: &str) -> &'static str {
    match stored {
        "payment" => "encaissement",
        "refund" => "remboursement",
        "refund_failure" => "remboursement revenu",
        "dispute" => "litige",
        "dispute_reversal" => "litige gagné, argent rendu",
        "charge_failure" => "paiement refusé après coup",
        "partial_capture" => "part non débitée d’un paiement",
        "platform_reversal" => "reprise par une plateforme",
        "no_turnover" => "mouvement sans chiffre d’affaires",
        "unlisted_payment" => "paiement d’une commande, non listé",
        "unknown" => "mouvement d’un type inconnu",
        _ => "autre mouvement",
    }
}

/// Returns how something was paid, by the provider's word for it; another word stays as it is.
pub fn means(word: &str) -> &str {
    match word {
        "card" | "card_present" | "credit_card" | "debit_card" => "carte bancaire",
        "cash" => "espèces",
        "sepa_debit" => "prélèvement SEPA",
        "bank_deposit" | "customer_balance" | "bank_transfer" => "virement",
        "money_order" | "check" | "cheque" => "chèque",
        other => other,
    }
}

/// Returns a provider's name, as its users know it.
pub fn provider(stored: &str) -> &'static str {
    match stored {
        "stripe" => "Stripe",
        "shopify" => "Shopify",
        _ => "Autre source",
    }
}

/// Returns what a month's figure is worth, by its stored name.
pub fn month_worth(stored: &str) -> &'static str {
    match stored {
        "complete" => "complet",
        "provisional" => "provisoire",
        _ => "incomplet",
    }
}

/// Returns what became of an item that reads something, by its stored status.
pub fn item_status(stored: &str) -> &'static str {
    match stored {
        "queued" => "en attente",
        "done" => "lu",
        "partial" => "lu, avec réserve",
        "failed" => "en échec",
        "superseded" => "repris par une lecture plus récente",
        _ => "dans un état inconnu",
    }
}

/// Returns the name of one mail of a stored kind, as a heading.
pub fn one_mail(stored: &str) -> &'static str {
    match MailKind::from_stored(stored) {
        Some(MailKind::MarketingDay3) => "Courriel J+3",
        Some(kind) => kind.section(),
        None => "Autre courriel",
    }
}

/// Returns the name of a user's plan.
pub fn plan(stored: Option<&str>) -> &'static str {
    match stored {
        Some("free") => "offre gratuite",
        Some("pro") => "Pro",
        Some("premium") => "Premium",
        Some("suspended") => "abonnement suspendu, faute de paiement",
        _ => "offre inconnue : tarif absent des variables STRIPE_PRICE_…",
    }
}

/// Returns what follows from a year, in a few words.
pub fn consequence(consequence: Consequence) -> &'static str {
    match consequence {
        Consequence::VatDue => "Redevable de la TVA",
        Consequence::MicroLeft => "Sortie du régime micro-entreprise",
    }
}

/// Returns the name of a threshold, as a heading.
pub fn threshold(threshold: Threshold) -> &'static str {
    match threshold {
        Threshold::MicroTotal => "Plafond de la micro-entreprise, chiffre d’affaires total",
        Threshold::MicroServices => "Plafond de la micro-entreprise, prestations de services",
        Threshold::VatBaseTotal => "Franchise de TVA, seuil de base, chiffre d’affaires total",
        Threshold::VatBaseServices => "Franchise de TVA, seuil de base, prestations de services",
        Threshold::VatIncreasedTotal => "Franchise de TVA, seuil majoré, chiffre d’affaires total",
        Threshold::VatIncreasedServices => "Franchise de TVA, seuil majoré, prestations de services",
    }
}
