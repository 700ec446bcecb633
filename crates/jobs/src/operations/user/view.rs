//! Makes the one value that the page of a user shows and its JSON says. Pure.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{
    facts::{Connection, PAGE, UserFacts},
    law::Law,
};
use crate::{integrations::remedy, operations::view::permanent_tokens, words::counted};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserView {
    pub(crate) generated_at: DateTime<Utc>,
    #[serde(flatten)]
    pub(crate) facts: UserFacts,
    /// It is missing where the books could not be asked for.
    pub(crate) law: Option<Law>,
    /// Of the opened month's movements, from 0 on.
    pub(crate) page: u32,
    pub(crate) pages: u32,
}

impl UserView {
    pub(crate) fn new(now: DateTime<Utc>, mut facts: UserFacts, law: Option<Law>, page: u32) -> Self {
        for connection in &mut facts.connections {
            connection.to_do = to_do(connection, now);
        }
        let movements = facts.month.as_ref().map_or(0, |month| month.movements_total);
        let pages = u32::try_from(movements.div_ceil(PAGE.into())).unwrap_or(u32::MAX).max(1);
        Self { generated_at: now, facts, law, page, pages }
    }
}

/// Says what somebody must do about a connection, and who.
fn to_do(connection: &Connection, now: DateTime<Utc>) -> Vec<String> {
    let mut all = Vec::new();
    match connection.state.as_str() {
        "failing" => all.push(remedy(connection.code.as_deref().unwrap_or_default()).to_owned()),
        "late" => all.push(
            "Plus de 36\u{a0}h sans lecture réussie, sans échec\u{a0}: regarder les exécutions manquées et la file."
                .to_owned(),
        ),
        "new" => all.push("Pas encore de lecture réussie\u{a0}: elle vient avec la synchronisation suivante.".to_owned()),
        "inactive" => all.push("Rien n’est lu\u{a0}: l’utilisateur reconnecte la source s’il le souhaite.".to_owned()),
        _ => {}
    }
    if connection.is_permanent == Some(true) && !matches!(connection.state.as_str(), "inactive" | "gone") {
        all.push(permanent_tokens(1, now));
    }
    if connection.also_claimed_by > 0 {
        all.push(format!(
            "Ce compte est aussi revendiqué par {}.",
            counted(connection.also_claimed_by, "autre utilisateur", "autres utilisateurs")
        ));
    }
    if connection.left_out {
        all.push(
            "Ce compte est retiré des livres\u{a0}: ses mouvements sont lus mais ne comptent pas.".to_owned(),
        );
    }
    all
}
