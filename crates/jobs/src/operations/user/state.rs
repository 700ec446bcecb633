//! Says in French what follows from a year's books, for VAT and for the micro regime. Pure.

use crate::{
    schedule::paris,
    urssaf::{Micro, Passed, State, Vat, Verdict},
};

/// Says what is certain; then what would follow if typed and imported turnover are money of their own.
pub(crate) fn said(state: &State) -> Vec<String> {
    let mut all = vec![vat(state.certain.vat), micro(state.certain.micro)];
    if let Some(Verdict { vat: of_vat, micro: of_micro }) = state.if_distinct {
        let distinct = [
            (of_vat != state.certain.vat).then(|| vat(of_vat)),
            (of_micro != state.certain.micro).then(|| micro(of_micro)),
        ];
        let distinct = distinct.into_iter().flatten();
        all.extend(distinct.map(|said| format!("Si saisies et importations sont distinctes\u{a0}: {said}")));
    }
    all
}

fn vat(vat: Vat) -> String {
    match vat {
        Vat::Free { .. } => "TVA\u{a0}: en franchise, aucun seuil dépassé.".to_owned(),
        Vat::Next { from, .. } => {
            format!("TVA\u{a0}: due à partir du {}, le seuil de base est dépassé.", paris::french(from))
        }
        Vat::Since { passed: when, .. } | Vat::SinceYearBefore { passed: when } => {
            format!("TVA\u{a0}: due, le seuil majoré a été dépassé {}.", passed(when))
        }
        Vat::SinceNewYear { since } => format!(
            "TVA\u{a0}: due depuis le {}, l’année d’avant a dépassé le seuil de base.",
            paris::french(since)
        ),
    }
}

fn micro(micro: Micro) -> String {
    match micro {
        Micro::Within { .. } => "Micro-entreprise\u{a0}: sous les plafonds.".to_owned(),
        Micro::Once { .. } => {
            "Micro-entreprise\u{a0}: plafond dépassé, sans que ce soit sûr pour l’année d’avant\u{a0}; rien ne change encore."
                .to_owned()
        }
        Micro::Twice { from } => format!(
            "Micro-entreprise\u{a0}: plafond dépassé deux années de suite, sortie du régime le {}.",
            paris::french(from)
        ),
        Micro::Out { since } => {
            format!("Micro-entreprise\u{a0}: sortie du régime depuis le {}.", paris::french(since))
        }
    }
}

fn passed(when: Passed) -> String {
    match when {
        Passed::On(day) => format!("le {}", paris::french(day)),
        Passed::In(month) => format!("en {}", month.french()),
        Passed::During(year) => format!("en {year}, sans que le mois soit sûr"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::urssaf::Before;

    #[test]
    fn what_is_in_doubt_is_said_apart() {
        let before = Before::None;
        let free = Verdict { vat: Vat::Free { before }, micro: Micro::Within { before } };
        let passed = Passed::In("2026-03".parse().unwrap());
        let due = Verdict { vat: Vat::Since { passed, before }, ..free };
        assert_eq!(
            said(&State { certain: free, if_distinct: None, reduced: None, doubtful: None, regained: false })
                .len(),
            2
        );
        let all = said(&State {
            certain: free,
            if_distinct: Some(due),
            reduced: None,
            doubtful: None,
            regained: false,
        });
        assert_eq!(all.len(), 3, "{all:?}");
        assert!(all[2].contains("distinctes") && all[2].contains("en mars 2026"), "{all:?}");
    }
}
