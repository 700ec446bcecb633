//! Says what a limit is called, and how much it matters to be near or above it.

use crate::urssaf::{Crossing, Threshold};

/// Says how much a crossing matters to its reader.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Level {
    /// The figures have to be looked at first.
    Check,
    /// The limit is not exceeded yet.
    Near,
    /// The limit is exceeded.
    Over,
}

impl Level {
    pub(super) fn of(crossing: &Crossing) -> Self {
        match crossing.step {
            _ if crossing.doubt.is_some() => Self::Check,
            ..100 => Self::Near,
            _ => Self::Over,
        }
    }

    /// Returns its name in the style sheet and the palette.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Near => "near",
            Self::Over => "over",
        }
    }
}

/// Holds the two things a limit can be about, and the two turnovers it is held against.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    /// Names the limit in a sentence, as in "plafond de la micro-entreprise".
    pub(super) name: &'static str,
    pub(super) vat: bool,
    pub(super) increased: bool,
    pub(super) services: bool,
}

impl Limit {
    pub(super) fn of(threshold: Threshold) -> Self {
        let (name, vat, increased) = match threshold {
            Threshold::MicroTotal | Threshold::MicroServices => {
                ("plafond de la micro-entreprise", false, false)
            }
            Threshold::VatBaseTotal | Threshold::VatBaseServices => {
                ("seuil de franchise de TVA", true, false)
            }
            Threshold::VatIncreasedTotal | Threshold::VatIncreasedServices => {
                ("seuil majoré de TVA", true, true)
            }
        };
        let services = matches!(
            threshold,
            Threshold::MicroServices | Threshold::VatBaseServices | Threshold::VatIncreasedServices
        );
        Self { name, vat, increased, services }
    }
}
