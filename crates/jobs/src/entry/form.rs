//! A form of one of our pages, read.

use http_body_util::BodyExt;
use vercel_runtime::Error;

use super::body;

/// No form of ours is larger.
const LARGEST_FORM: usize = 4 * 1024;

/// Represents a form's fields.
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) async fn read<B>(body: B) -> Option<Self>
    where
        B: BodyExt,
        B::Error: Into<Error>,
    {
        let bytes = body::read(body, LARGEST_FORM).await?;
        Some(Self(form_urlencoded::parse(&bytes).into_owned().collect()))
    }

    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}
