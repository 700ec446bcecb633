//! Holds what all mails show of a deployment: the application, the sender and the promotional code.

/// Holds what every mail of a deployment shows, whatever its facts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Branding {
    /// The web application, with no slash at its end.
    pub app_url: String,
    /// Who writes, as the law wants it in the foot. May have several lines.
    pub sender_identity: String,
    /// Shown in the J+3 mail only.
    pub promo: Option<Promo>,
}

/// Represents a promotional code.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Promo {
    /// What the user types.
    pub code: String,
    /// What it gives, in French.
    pub label: String,
}
