//! Says on what an alert's figures rest, and what is not in them.

use chrono::NaiveDate;

use super::{
    foreign::unlinked,
    french::{self, date, euros, list, month},
};
use crate::{
    email::{AlertRemarks, Assumed, Uncounted},
    money::{Currency, MinorAmount},
    schedule::Month,
    urssaf::Activity,
};

/// So many unknown activities and currencies are named; the others are counted.
const NAMED: usize = 5;

/// Represents a remark set apart from the text.
pub(super) struct Remark {
    /// `near` for a warning, `check` for something to know.
    pub(super) kind: &'static str,
    pub(super) title: &'static str,
    pub(super) words: String,
}

/// Returns what there is to remark, the weightiest first.
pub(super) fn remarks(remarks: &AlertRemarks, unknown_activities: &[String]) -> Vec<Remark> {
    let mut found = Vec::new();
    let mut add = |kind, title, words| found.push(Remark { kind, title, words });
    if let Some(amounts) = uncounted(&remarks.uncounted) {
        add(
            "near",
            "Des devises ne sont pas comptées",
            format!(
                "Vos encaissements en devises ne sont dans aucun des montants ci-dessus : {amounts}. Convertissez-les et \
                 ajoutez-les : les limites peuvent être atteintes plus tôt."
            ),
        );
    }
    for assumed in &remarks.assumed {
        add("near", "Une activité supposée", is_assumed(assumed, "d’autres limites s’appliquent"));
    }
    if let Some((created, first)) = remarks.contradiction {
        add("near", "Date de création non retenue", contradicted(created, first));
    }
    if remarks.planned != 0 {
        add(
            "check",
            "Mois à venir",
            format!(
                "{} saisis pour des mois à venir ne sont pas comptés : seul ce qui est encaissé compte.",
                euros(remarks.planned)
            ),
        );
    }
    if let Some(unknown) = unknown(unknown_activities) {
        let (title, theirs, them) = if unknown_activities.len() > 1 {
            ("Activités non reconnues", "Leur", "ces activités")
        } else {
            ("Activité non reconnue", "Son", "cette activité")
        };
        add(
            "check",
            title,
            format!(
                "{theirs} chiffre d’affaires compte dans le total, mais pas dans celui des services : {unknown}. \
                 Corrigez {them} dans vos enregistrements."
            ),
        );
    }
    found
}

/// Says that the books contradict the date of creation, and what follows for the limits.
pub(super) fn contradicted(created: NaiveDate, first: Month) -> String {
    format!(
        "Votre profil indique une création le {}, mais des encaissements sont enregistrés dès {}. Les limites ne sont donc \
         pas réduites au prorata. Corrigez la date, ou ces encaissements.",
        date(created),
        month(first)
    )
}

/// Says which activities of a month nobody has said, for mails of each month. A shop sells goods as a rule: that is said
/// where a ceiling is near, and not each month.
pub(super) fn assumed_activities(
    assumed: &[Assumed],
    otherwise: &str,
    counts: impl Fn(Option<Activity>) -> bool,
) -> Vec<String> {
    assumed
        .iter()
        .filter(|assumed| assumed.provider != "shopify" && counts(Activity::parse(&assumed.activity)))
        .map(|assumed| is_assumed(assumed, otherwise))
        .collect()
}

/// `otherwise`: what would be so, as in "d’autres limites s’appliquent".
fn is_assumed(assumed: &Assumed, otherwise: &str) -> String {
    let source = french::source(&assumed.provider);
    let (is, other) = match Activity::parse(&assumed.activity) {
        Some(Activity::Sales) => ("des ventes de marchandises", "vous vendez des services"),
        Some(Activity::Liberal) => ("une activité libérale", "ce n’est pas le cas"),
        Some(Activity::Services) | None => ("des prestations de services", "vous vendez des marchandises"),
    };
    format!(
        "Faute d’indication, vos encaissements {source} sont comptés comme {is}. Si {other}, {otherwise} : indiquez votre activité sur la page Intégrations de votre compte, et tout sera recompté."
    )
}

fn uncounted(uncounted: &[Uncounted]) -> Option<String> {
    let amount = |one: &Uncounted| match one.currency.parse::<Currency>() {
        Ok(currency) => MinorAmount::new(one.amount, currency).to_string(),
        Err(_) => unlinked(&one.currency, 10),
    };
    named(uncounted.iter().map(amount).collect(), "une autre devise", "autres devises")
}

fn unknown(activities: &[String]) -> Option<String> {
    let quoted = activities.iter().map(|activity| format!("« {} »", unlinked(activity, 60))).collect();
    named(quoted, "une autre", "autres")
}

/// Names the first ones and counts the others.
fn named(mut all: Vec<String>, one_more: &str, more: &str) -> Option<String> {
    let others = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    match others {
        0 => {}
        1 => all.push(one_more.to_owned()),
        others => all.push(format!("{others} {more}")),
    }
    (!all.is_empty()).then(|| list(&all))
}
