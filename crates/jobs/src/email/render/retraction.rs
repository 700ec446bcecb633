//! Takes back what an earlier alert has said: the books have changed, and it does not hold any more.

use super::{consequence::Limit, french::list};
use crate::{email::Retracted, urssaf::Consequence};

/// Returns what there is to take back, a sentence or two for each year, the oldest first.
pub(super) fn words(retracted: &[Retracted]) -> Vec<String> {
    let mut years: Vec<i32> = retracted.iter().map(|one| one.year).collect();
    years.sort_unstable();
    years.dedup();
    years.into_iter().filter_map(|year| of_year(year, retracted)).collect()
}

fn of_year(year: i32, retracted: &[Retracted]) -> Option<String> {
    let of_year = || retracted.iter().filter(move |one| one.year == year);
    let thresholds: Vec<_> = of_year().filter_map(|one| one.threshold).collect();
    let names: Vec<String> = thresholds
        .iter()
        .map(|threshold| {
            let limit = Limit::of(*threshold);
            format!("du {}{}", limit.name, if limit.services { " (services)" } else { "" })
        })
        .collect();
    let follows = |consequence: Consequence| {
        let is_explained = thresholds.iter().any(|threshold| threshold.is_vat() == consequence.is_vat());
        of_year().any(|one| one.consequence == Some(consequence)) && !is_explained
    };
    let mut sentences = Vec::new();
    match names.len() {
        0 => {}
        1 => sentences.push(format!(
            "Un courriel précédent annonçait le dépassement {} en {year}. D’après vos enregistrements actuels, cette limite \
             n’est pas dépassée : ne tenez plus compte de cette annonce.",
            names[0]
        )),
        _ => sentences.push(format!(
            "Des courriels précédents annonçaient le dépassement {} en {year}. D’après vos enregistrements actuels, ces \
             limites ne sont pas dépassées : ne tenez plus compte de ces annonces.",
            list(&names)
        )),
    }
    if follows(Consequence::VatDue) {
        sentences.push(format!(
            "Un courriel précédent vous disait redevable de la TVA en {year}. D’après vos enregistrements actuels, rien ne \
             l’établit plus."
        ));
    }
    if follows(Consequence::MicroLeft) {
        sentences.push(format!(
            "Un courriel précédent, à propos de {year}, annonçait votre sortie du régime micro-entreprise. D’après vos \
             enregistrements actuels, rien ne l’établit plus."
        ));
    }
    if sentences.is_empty() {
        return None;
    }
    sentences.push(
        "Si vous avez déjà agi en conséquence, voyez avec votre service des impôts des entreprises comment y revenir."
            .to_owned(),
    );
    Some(sentences.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::urssaf::Threshold;

    fn limit(year: i32, threshold: Threshold) -> Retracted {
        Retracted { year, threshold: Some(threshold), consequence: None }
    }

    fn following(year: i32, consequence: Consequence) -> Retracted {
        Retracted { year, threshold: None, consequence: Some(consequence) }
    }

    #[test]
    fn limits_are_named_and_what_followed_from_them_is_not_repeated() {
        let told = words(&[
            limit(2026, Threshold::VatBaseServices),
            limit(2026, Threshold::VatIncreasedServices),
            following(2026, Consequence::VatDue),
        ]);
        assert_eq!(told.len(), 1);
        assert!(
            told[0].starts_with(
                "Des courriels précédents annonçaient le dépassement du seuil de franchise de TVA (services) et du seuil \
                 majoré de TVA (services) en 2026."
            ),
            "{told:?}"
        );
        assert!(!told[0].contains("redevable"), "{told:?}");
    }

    #[test]
    fn what_was_told_without_a_step_is_taken_back_by_itself() {
        let told = words(&[following(2027, Consequence::MicroLeft), following(2026, Consequence::VatDue)]);
        assert!(
            told[0].starts_with("Un courriel précédent vous disait redevable de la TVA en 2026."),
            "{told:?}"
        );
        assert!(told[1].contains("votre sortie du régime micro-entreprise"), "{told:?}");
        let both = words(&[limit(2026, Threshold::MicroTotal), following(2026, Consequence::VatDue)]);
        assert!(
            both[0].contains("plafond de la micro-entreprise") && both[0].contains("redevable"),
            "{both:?}"
        );
        assert!(words(&[]).is_empty());
    }
}
