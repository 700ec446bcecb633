//! What Urssaf's own rules make of a situation: npm `modele-social`, with which mon-entreprise.urssaf.fr computes.
//!
//! The packages pinned in `npm/urssaf` are installed once per version of the lock file; a node script beside it asks
//! the rules.

use std::path::Path;

use anyhow::ensure;
use chrono::NaiveDate;
use processes::npm::Set;
use serde::{Deserialize, Serialize};

use crate::node_script;

/// The rules, and what runs them.
const RULES: Set = Set {
    name: "urssaf",
    manifest: include_str!("../npm/urssaf/package.json"),
    lock: include_str!("../npm/urssaf/package-lock.json"),
    finish: |_| Ok(()),
};

/// A micro-entrepreneur's month, in the rules' own terms. Amounts are whole euros.
#[derive(Clone, Debug, Serialize)]
pub struct Situation {
    /// A day of the month.
    pub date: NaiveDate,
    pub created: NaiveDate,
    pub nature: Nature,
    /// The user's answer to "Bénéficiez-vous de l'Acre ?".
    pub acre: bool,
    /// A regulated liberal profession. The rules know it only where nothing else is sold.
    pub cipav: bool,
    /// Versement libératoire de l'impôt sur le revenu.
    pub flat_tax: bool,
    pub sales: i64,
    pub services: i64,
    pub liberal: i64,
}

/// The nature of the main activity.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum Nature {
    #[serde(rename = "commerciale")]
    Commerce,
    #[serde(rename = "artisanale")]
    Craft,
    #[serde(rename = "libérale")]
    Liberal,
}

/// What the rules answer, in whole euros.
#[derive(Clone, Debug, Deserialize)]
pub struct RulesAnswer {
    /// Social contributions of the month.
    pub contributions: i64,
    /// Contribution à la formation professionnelle of the month.
    pub training: i64,
    /// Versement libératoire of the month, 0 without it.
    pub flat_tax: i64,
    /// The year's ceilings of the micro regime: of all turnover, and of services.
    pub ceilings: [i64; 2],
    /// Whether twelve such months exceed one of them.
    pub exceeded: bool,
}

/// Asks the rules about all of `situations` at once.
///
/// # Errors
/// Says why the rules could not be asked.
pub async fn ask_all(situations: &[Situation]) -> anyhow::Result<Vec<RulesAnswer>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("npm/urssaf/urssaf.mjs");
    let answers: Vec<RulesAnswer> =
        node_script::run(RULES, &script, &serde_json::to_value(situations)?).await?;
    ensure!(answers.len() == situations.len(), "the rules answer every situation");
    Ok(answers)
}
