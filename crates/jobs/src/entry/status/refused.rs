//! Why an action is not done.

/// Represents an action that is not done, and why.
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) message: String,
}

impl Refused {
    pub(super) fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

/// Answers whoever asks for a user that does not exist.
pub(super) const NOBODY: &str = "Aucun utilisateur n’a cet identifiant ou cette adresse.";
