//! What goes back over HTTP: JSON whose keys keep their order and whose amounts stay as the database wrote
//! them, never cached.

use std::borrow::Cow;

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::value::RawValue;

use crate::routes::Route;

/// Represents a JSON object whose fields keep the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct Fields(Vec<(&'static str, Box<RawValue>)>);

impl Fields {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn with<T: Serialize + ?Sized>(mut self, name: &'static str, value: &T) -> Self {
        // Everything answered is plain data: it cannot fail to be JSON.
        if let Ok(value) = serde_json::value::to_raw_value(value) {
            self.0.push((name, value));
        }
        self
    }

    pub(super) fn with_some<T: Serialize>(self, name: &'static str, value: Option<&T>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Represents a finished answer.
#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    headers: Vec<(&'static str, Cow<'static, str>)>,
    body: String,
    content_type: &'static str,
    /// Holds what [`error`](Self::error) was given.
    complaint: Option<String>,
}

impl Answer {
    pub(super) fn json(status: u16, fields: &Fields) -> Self {
        let body =
            if fields.is_empty() { String::new() } else { serde_json::to_string(fields).unwrap_or_default() };
        Self {
            status,
            headers: Vec::new(),
            body,
            content_type: "application/json; charset=utf-8",
            complaint: None,
        }
    }

    /// Answers a value that says everything by itself.
    pub(super) fn object(status: u16, value: &impl Serialize) -> Self {
        let body = serde_json::to_string(value).unwrap_or_default();
        Self { body, ..Self::json(status, &Fields::new()) }
    }

    /// Answers a page of ours: no script, nothing from elsewhere, forms to ourselves only.
    pub(super) fn page(status: u16, html: String) -> Self {
        const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
        let headers =
            vec![("content-security-policy", POLICY.into()), ("referrer-policy", "no-referrer".into())];
        Self { status, headers, body: html, content_type: "text/html; charset=utf-8", complaint: None }
    }

    /// A file that a browser keeps.
    pub(super) fn file(content_type: &'static str, name: &str, body: String) -> Self {
        let headers = vec![("content-disposition", format!("attachment; filename=\"{name}\"").into())];
        Self { status: 200, headers, body, content_type, complaint: None }
    }

    pub(super) fn error(status: u16, message: &str) -> Self {
        let complaint = Some(message.to_owned());
        Self { complaint, ..Self::json(status, &Fields::new().with("error", message)) }
    }

    /// Refuses a method that a route does not take, and names those that it takes.
    pub(super) fn wrong_method(route: Route) -> Self {
        let methods = route.allow().replace(", ", " ou ");
        Self::error(405, &format!("Méthode non autorisée : utilisez {methods}."))
            .with_header("allow", route.allow())
    }

    /// Answers a form with the page to look at now.
    pub(super) fn see_other(location: impl Into<Cow<'static, str>>) -> Self {
        Self::empty(303).with_header("location", location)
    }

    pub(super) fn empty(status: u16) -> Self {
        Self::json(status, &Fields::new())
    }

    pub(super) fn with_header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Returns the message of an error, for the log.
    pub(super) fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }

    pub(super) fn status(&self) -> u16 {
        self.status
    }

    pub(super) fn body(&self) -> &str {
        &self.body
    }

    /// As the runtime sends it.
    pub(super) fn into_response(self) -> vercel_runtime::Response<vercel_runtime::ResponseBody> {
        let mut builder = vercel_runtime::Response::builder()
            .status(self.status)
            .header("cache-control", "no-store")
            .header("x-content-type-options", "nosniff");
        if !self.body.is_empty() {
            builder = builder.header("content-type", self.content_type);
        }
        for (name, value) in self.headers {
            builder = builder.header(name, value.as_ref());
        }
        builder.body(vercel_runtime::ResponseBody::from(self.body)).expect("statuses and headers are ours")
    }
}
