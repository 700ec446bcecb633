//! What the page says after an action: the address carries one word, so that nothing in it is anybody else's.

/// Holds what the page says after an action, by the word in its address.
pub(super) const NOTICES: [(&str, &str); 9] = [
    ("rejeu", "Le rejeu est lancé. Rechargez la page dans un instant : l’exécution apparaît sous sa tâche."),
    ("reprise", "La reprise est lancée. Rechargez la page dans un instant pour voir la file se vider."),
    ("rien", "Il n’y avait rien à reprendre dans cette file."),
    (
        "relecture",
        "La relecture est lancée. Rechargez la page dans un instant : elle apparaît sous les dernières lectures.",
    ),
    ("retire", "Le compte est retiré des livres ; ses mois sont recalculés."),
    ("remis", "Le compte est remis dans les livres ; ses mois sont recalculés."),
    (
        "retablie",
        "Les courriels repartent à cette adresse, de notre côté. Retirez-la aussi de la liste de Resend.",
    ),
    ("renvoi", "Le renvoi est lancé. Rechargez la page dans un instant pour voir ce qu’il est devenu."),
    ("aucun", "Il n’y avait aucun courriel à renvoyer."),
];
