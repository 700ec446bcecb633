//! Lists the kinds of mail.

use serde::{Deserialize, Serialize};

use crate::lane::Lane;

listed! {
    /// Says what a mail is for. The names are stored in `email_deliveries` and signed into links: they never change.
    #[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
    #[serde(rename_all = "snake_case")]
    pub enum MailKind {
        ThresholdAlert,
        /// Asks a user to connect an integration again.
        IntegrationTrouble,
        /// Tells whoever runs this deployment what went wrong.
        OperatorDigest,
        MonthlyReminder,
        MonthlyRecap,
        /// Tells the definitive total of a month of which a recap has named another one.
        DefinitiveMonth,
        MarketingDay3,
    }
}

impl MailKind {
    /// Returns the lane in which mails of this kind wait.
    pub const fn lane(self) -> Lane {
        match self {
            Self::ThresholdAlert | Self::IntegrationTrouble | Self::OperatorDigest => Lane::Alerts,
            Self::MonthlyReminder => Lane::Reminders,
            Self::MonthlyRecap | Self::DefinitiveMonth => Lane::Recaps,
            Self::MarketingDay3 => Lane::Marketing,
        }
    }

    /// Returns whether a link in the mail stops its kind. The others are stopped in the account's preferences, or by
    /// whoever runs the deployment.
    pub const fn has_unsubscribe_link(self) -> bool {
        match self {
            Self::MonthlyReminder | Self::MonthlyRecap | Self::DefinitiveMonth | Self::MarketingDay3 => true,
            Self::ThresholdAlert | Self::IntegrationTrouble | Self::OperatorDigest => false,
        }
    }

    /// Returns whether the reader is a user, who has preferences, and not the operator.
    pub const fn is_for_users(self) -> bool {
        !matches!(self, Self::OperatorDigest)
    }

    /// Returns the stored name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ThresholdAlert => "threshold_alert",
            Self::IntegrationTrouble => "integration_trouble",
            Self::OperatorDigest => "operator_digest",
            Self::MonthlyReminder => "monthly_reminder",
            Self::MonthlyRecap => "monthly_recap",
            Self::DefinitiveMonth => "definitive_month",
            Self::MarketingDay3 => "marketing_day3",
        }
    }

    /// Returns the kind of a stored name.
    pub fn from_stored(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}
