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

/// Installs the rules, and what runs them.
const RULES: Set = Set {
    name: "urssaf",
    manifest: include_str!("../npm/urssaf/package.json"),
    lock: include_str!("../npm/urssaf/package-lock.json"),
    finish: |_| Ok(()),
};

/// Represents a micro-entrepreneur's month, in the rules' own terms. Amounts are whole euros.
#[derive(Clone, Debug, Serialize)]
pub struct Situation {
    /// Is any day of the month.
    pub date: NaiveDate,
    pub created: NaiveDate,
    pub nature: Nature,
    /// Is the user's answer to "Bénéficiez-vous de l'Acre ?".
    pub acre: bool,
    /// Is true of a regulated liberal profession. The rules know it only where nothing else is
    /// sold.
    pub cipav: bool,
    /// Is true where the versement libératoire de l'impôt sur le revenu is chosen.
    pub flat_tax: bool,
    pub sales: i64,
    pub services: i64,
    pub liberal: i64,
}

/// Names the nature of the main activity.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum Nature {
    #[serde(rename = "commerciale")]
    Commerce,
    #[serde(rename = "artisanale")]
    Craft,
    #[serde(rename = "libérale")]
    Liberal,
}

/// Holds what the rules answer, in whole euros.
#[derive(Clone, Debug, Deserialize)]
pub struct RulesAnswer {
    /// Is the sum of the month's social contributions.
    pub contributions: i64,
    /// Is the month's contribution à la formation professionnelle.
    pub training: i64,
    /// Is the month's versement libératoire, 0 without it.
    pub flat_tax: i64,
    /// Holds the year's ceilings of the micro regime: of all turnover, and of services.
    pub ceilings: [i64; 2],
    /// Says whether twelve such months exceed one of them.
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
