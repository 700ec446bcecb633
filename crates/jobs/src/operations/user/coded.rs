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

impl From<&str> for Coded {
    fn from(code: &str) -> Self {
        Self(code.to_owned())
    }
}

impl Serialize for Coded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Coded", 2)?;
        fields.serialize_field("code", &self.0)?;
        fields.serialize_field("said", self.said())?;
        fields.end()
    }
}
