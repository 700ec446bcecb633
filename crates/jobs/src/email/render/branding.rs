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

/// Holds the absolute addresses of this deployment to which a mail leads. Without one, the mail does not speak of what
/// is behind it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Links<'a> {
    /// Stops mails of this kind. Alerts do not show it: their foot leads to the preferences only.
    pub unsubscribe: Option<&'a str>,
    /// Takes the reader's word on months with both typed and imported rows.
    pub confirm: Option<&'a str>,
}
