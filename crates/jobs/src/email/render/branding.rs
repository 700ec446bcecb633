//! Holds what all mails show of a deployment: the application, the sender and the promotional code.

/// Holds what every mail of a deployment shows, whatever its facts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Branding {
    /// Holds the address of the web application, with no slash at its end.
    pub app_url: String,
    /// Says who writes, as the law wants it in the foot. May have several lines.
    pub sender_identity: String,
    /// Is shown in the J+3 mail only.
    pub promo: Option<Promo>,
}

/// Represents a promotional code.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Promo {
    /// Is what the user types into the payment form.
    pub code: String,
    /// Holds what it gives, in French.
    pub label: String,
}
