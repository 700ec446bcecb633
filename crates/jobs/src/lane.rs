//! Lists the lanes: one queue for each kind of work, all of them in the order in which they are served.

use serde::{Deserialize, Serialize};

listed! {
    /// Represents a queue of its own (`jobs_<lane>` in the database). The stored names never change.
    #[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Lane {
        Alerts,
        Reminders,
        Recaps,
        Marketing,
        Stripe,
        Shopify,
        Months,
    }
}

impl Lane {
    /// Returns whether the lane's items are mails, which leave in batches; the others are worked on one by one.
    pub const fn is_mail(self) -> bool {
        match self {
            Self::Alerts | Self::Reminders | Self::Recaps | Self::Marketing => true,
            Self::Stripe | Self::Shopify | Self::Months => false,
        }
    }

    /// Returns the lanes of mails.
    pub fn mails() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|lane| lane.is_mail())
    }

    /// Returns the lanes whose items read payments.
    pub fn data() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|lane| !lane.is_mail())
    }

    /// Returns the stored name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alerts => "alerts",
            Self::Reminders => "reminders",
            Self::Recaps => "recaps",
            Self::Marketing => "marketing",
            Self::Stripe => "stripe",
            Self::Shopify => "shopify",
            Self::Months => "months",
        }
    }

    /// Returns the lane of a stored name.
    pub fn from_stored(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.as_str() == name)
    }
}
