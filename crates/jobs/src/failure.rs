//! Defines the three words for what goes wrong, and what each means:
//!
//! - a *fault* is something wrong with the configuration, by the name of its variable (`config::Faults`);
//! - a [`Failure`] is why work did not succeed, classified once where it is seen: an item, a mail, a lane, a part of a
//!   task. [`CountedFailure`] is the same failure of many items;
//! - *problems* are how an answer lists both for its caller.
//!
//! An error type (`SupabaseError`, `ProviderError`, …) is what a call returns; it becomes a failure when it is
//! recorded.

use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct};

/// A message is stored and told up to here: it may quote a vendor, who may quote a user.
const MOST_CHARACTERS: usize = 500;

/// Represents a classified failure, as operators see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// Is a stable name, by which failures are counted.
    pub code: String,
    /// Is a sentence in French that is safe to show to everybody. What leaves this process is
    /// [`said`](Self::said).
    pub message: String,
}

/// Every failure leaves cut: into the database, an answer, a log line.
impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Failure", 2)?;
        fields.serialize_field("code", &self.code)?;
        fields.serialize_field("message", self.said())?;
        fields.end()
    }
}

impl Failure {
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }

    /// Returns the message, cut to a bounded length.
    pub fn said(&self) -> &str {
        cut(&self.message, MOST_CHARACTERS)
    }
}

/// Represents one failure, counted once for all the items it hit.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CountedFailure {
    pub code: Option<String>,
    pub message: Option<String>,
    pub count: u64,
}

/// Returns the beginning of a text, of so many characters at most.
pub fn cut(text: &str, characters: usize) -> &str {
    text.char_indices().nth(characters).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_leaves_cut() {
        for (length, told) in [(3, 3), (500, 500), (501, 500), (2_000_000, 500)] {
            let failure = Failure::new("refused", "é".repeat(length));
            assert_eq!(failure.said().chars().count(), told);
            let written = serde_json::to_value(&failure).unwrap();
            assert_eq!(written, serde_json::json!({"code": "refused", "message": "é".repeat(told)}));
        }
    }
}
