//! Says what to declare of a month that has nothing above zero, as its recap does.

use super::french::list;

/// Says what to declare where more was paid back than cashed: the title and the words. `above_zero`: each activity of
/// which there is something to declare, with how much.
pub(super) fn negative(is_provisional: bool, above_zero: &[String]) -> (&'static str, String) {
    let title = if is_provisional {
        "Le total du mois est négatif pour l’instant"
    } else {
        "Le total du mois est négatif"
    };
    let (monthly, quarterly) = if above_zero.is_empty() {
        (
            "déclarez 0 € si vous n’avez rien encaissé par ailleurs".to_owned(),
            "seule la somme du trimestre compte",
        )
    } else {
        let each = "chaque activité se déclare à part, et celle dont le montant est négatif à 0 €";
        (format!("{each} ({})", list(above_zero)), "seule la somme du trimestre compte, par activité")
    };
    let words = format!(
        "Les remboursements dépassent les encaissements. Un montant négatif ne se déclare pas : si vous déclarez chaque \
         mois, {monthly} ; si vous déclarez chaque trimestre, {quarterly}. En cas de doute, demandez à l’Urssaf."
    );
    (title, words)
}

/// Says what to declare where nothing was sold: the title and the words.
pub(super) const fn nothing(is_provisional: bool) -> (&'static str, &'static str) {
    if is_provisional {
        (
            "0 € à déclarer pour l’instant, d’après vos imports",
            "Le mois n’est pas terminé : ce qui s’y ajoute se déclarera. Si vous n’avez rien encaissé par ailleurs, \
             déclarez 0 €, à condition que rien ne s’y ajoute : un mois sans chiffre d’affaires se déclare aussi. Si \
             vous déclarez chaque trimestre, c’est le total du trimestre qui se déclare.",
        )
    } else {
        (
            "0 € à déclarer pour ce mois, d’après vos imports",
            "Si vous n’avez rien encaissé par ailleurs, déclarez 0 € : un mois sans chiffre d’affaires se déclare \
             aussi. Si vous déclarez chaque trimestre, c’est le total du trimestre qui se déclare.",
        )
    }
}
