//! Whatever the books say, no alert contradicts itself, nor the mail before it.

use chrono::NaiveDate;
use proptest::prelude::*;

use super::super::consequence::Limit;
use crate::{
    email::{
        AlertRemarks, Facts,
        render::{Links, render},
        samples::branding,
    },
    schedule::Month,
    urssaf::{Assessment, BookRow, UserBooks, YearBooks, assess},
};

/// Rows of 2024 to 2026: each month is one activity, typed, imported or both.
fn any_books() -> impl Strategy<Value = UserBooks> {
    let activity =
        prop::sample::select(vec!["Vente de marchandises", "Prestation de services", "Activité libérale"]);
    let side = prop_oneof![3 => Just(0_i64), 2 => 0_i64..2_000_000, 1 => 2_000_000_i64..12_000_000];
    let row = (2024_i32..=2026, 1_u32..=12, activity, side.clone(), side);
    let created =
        prop::option::of((2024..=2026, 1_u32..=365).prop_map(|(y, o)| NaiveDate::from_yo_opt(y, o).unwrap()));
    (prop::collection::vec(row, 1..10), created).prop_map(|(rows, created)| {
        let year = |of: i32| YearBooks {
            year: of,
            rows: rows
                .iter()
                .filter(|row| row.0 == of)
                .map(|&(_, month, activity, typed, imported)| BookRow {
                    month,
                    activity: activity.to_owned(),
                    typed,
                    imported,
                    mixed: typed != 0 && imported != 0,
                })
                .collect(),
        };
        UserBooks { years: (2024..=2026).map(year).collect(), created, days: Vec::new() }
    })
}

/// The text of the alert about 2026, on one line with plain spaces; `None`: there is nothing to tell.
fn mail(found: &Assessment, as_of: NaiveDate) -> Option<String> {
    if found.crossings.is_empty() {
        return None;
    }
    let facts = Facts::ThresholdAlert {
        first_name: None,
        year: 2026,
        crossings: found.crossings.clone(),
        unknown_activities: found.unknown_activities.clone(),
        state: Some(found.state),
        as_of: Some(as_of),
        remarks: AlertRemarks::default(),
        consequences: Vec::new(),
        retracted: Vec::new(),
    };
    let text = render(&facts, &branding(false), Links::default()).unwrap().text;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// How many of these a text says.
fn count(text: &str, parts: &[&str]) -> usize {
    parts.iter().filter(|part| text.contains(**part)).count()
}

/// What a text says of VAT that nothing else may say beside it, as whole sentences.
const VAT: [&str; 5] = [
    "Vous êtes redevable de la TVA depuis",
    "Vous êtes redevable de la TVA dès",
    "Vous êtes redevable de la TVA à partir du",
    "Le seuil n’est pas dépassé.",
    "Le seuil n’a pas été dépassé",
];

/// The same of the micro regime.
const MICRO: [&str; 6] = [
    "Le plafond n’est pas dépassé",
    "Le plafond n’a pas été dépassé",
    "Le plafond est dépassé en 2026",
    "Le plafond est dépassé deux années",
    "Le plafond a été dépassé deux années",
    "Vous ne relevez plus du régime",
];

proptest! {
    #[test]
    fn no_two_sentences_of_a_mail_contradict_each_other(
        books in any_books(),
        day in prop::sample::select(vec!["2026-06-15", "2026-11-24", "2026-12-31", "2027-01-01", "2027-01-20"]),
    ) {
        let as_of: NaiveDate = day.parse().unwrap();
        let found = assess(&books, &[], 2026, as_of).unwrap();
        let Some(text) = mail(&found, as_of) else { return Ok(()) };
        prop_assert!(count(&text, &VAT) <= 1, "{text}");
        prop_assert!(count(&text, &MICRO) <= 1, "{text}");
        // A regime of which something is told says what follows, once for certain or as two outcomes.
        let outcomes = text.matches("Si vos saisies et vos importations sont des encaissements distincts").count();
        let blocks = ["Seuil ", "Plafond "].iter().filter(|name| text.contains(&format!("{name}de ")) || text.contains(&format!("{name}majoré"))).count();
        prop_assert_eq!(count(&text, &VAT) + count(&text, &MICRO) + outcomes, blocks, "{}", text);
        if text.contains("Vous êtes redevable de la TVA d") {
            prop_assert_eq!(count(&text, &["Au-delà, vous êtes redevable", "préparez la facturation"]), 0, "{}", text);
        }
        // A step that is certainly passed is no limit that is not.
        for (is_vat, denied) in [(true, "Le seuil n’est pas dépassé."), (false, "Le plafond n’est pas dépassé")] {
            let is_over = found.crossings.iter().any(|crossing| {
                let of_vat = Limit::of(crossing.threshold).vat;
                of_vat == is_vat && crossing.step == 100 && crossing.doubt.is_none()
            });
            prop_assert!(!is_over || !text.contains(denied), "{text}");
        }
        if text.contains("Rien n’est enregistré dans Comptalyze pour 2025") || text.contains("votre première année") {
            prop_assert_eq!(count(&text, &["ne l’était pas en 2025", "l’était en 2025", "été dépassé en 2025"]), 0, "{}", text);
        }
        if day > "2027" {
            let future = ["préparez", "à partir du 1er janvier 2027", "vous sortez du régime", "À ce rythme", "Au-delà"];
            prop_assert_eq!(count(&text, &future), 0, "{}", text);
        }
    }

    /// A year in which money only comes in: no mail says of VAT what an earlier one has denied.
    #[test]
    fn no_mail_takes_back_what_an_earlier_one_said_is_due(books in any_books()) {
        let mut was_due: Option<String> = None;
        for number in 1..=12 {
            let as_of = Month::new(2026, number).unwrap().last_day();
            let found = assess(&books, &[], 2026, as_of).unwrap();
            let Some(text) = mail(&found, as_of) else { continue };
            let due = VAT[..2].iter().find_map(|said| text.find(said)).map(|at| {
                let sentence = &text[at..];
                sentence[..sentence.find(", sauf").unwrap_or(sentence.len())].to_owned()
            });
            if let Some(was) = &was_due && text.contains("Seuil ") {
                prop_assert_eq!(due.as_ref(), Some(was), "{}", text);
            }
            was_due = due.or(was_due);
        }
    }
}
