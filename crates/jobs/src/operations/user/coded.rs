//! Tells a stored code together with its French words, so that the JSON says what the page says.

use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct};

use crate::words;

/// Represents a stored reason: a code of ours, or a sentence in French already.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(transparent)]
pub(crate) struct Coded(String);

impl Coded {
    pub(crate) fn said(&self) -> &str {
        words::reason(&self.0)
    }

    pub(crate) fn code(&self) -> &str {
        &self.0
    }
}

/// Represents what the mail service has reported of a mail (`jobs.feedback_rank`).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(transparent)]
pub(crate) struct Reported(String);

impl Reported {
    pub(crate) fn said(&self) -> &str {
        words::feedback(&self.0)
    }

    /// Returns whether the service is still trying.
    pub(crate) fn is_open(&self) -> bool {
        self.0 == "delayed"
    }
}

impl Serialize for Reported {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        with_words(serializer, &self.0, self.said())
    }
}

impl From<&str> for Coded {
    fn from(code: &str) -> Self {
        Self(code.to_owned())
    }
}

impl Serialize for Coded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        with_words(serializer, &self.0, self.said())
    }
}

fn with_words<S: Serializer>(serializer: S, code: &str, said: &str) -> Result<S::Ok, S::Error> {
    let mut fields = serializer.serialize_struct("Coded", 2)?;
    fields.serialize_field("code", code)?;
    fields.serialize_field("said", said)?;
    fields.end()
}
