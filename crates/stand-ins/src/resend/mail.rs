//! A mail as it is sent and as it is kept, and what makes one invalid.
//!
//! After <https://resend.com/docs/api-reference/emails/send-email> and
//! <https://resend.com/docs/api-reference/emails/send-batch-emails>. Stricter than the service may be: an
//! address is ASCII and has a dot in its domain, and a template does not replace `from` and `subject`.

use std::{
    collections::{BTreeMap, HashSet},
    time::Instant,
};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Deserialize;
use serde_json::Value;

use super::refusals::Refusal;

/// Represents a mail as Resend keeps it.
#[derive(Clone, Debug, Deserialize)]
pub struct Mail {
    pub id: String,
    pub from: String,
    pub to: Vec<String>,
    pub subject: String,
    pub html: Option<String>,
    pub text: Option<String>,
    pub reply_to: Vec<String>,
    pub headers: BTreeMap<String, String>,
    pub tags: Vec<Value>,
    /// Says when it was taken, RFC 3339.
    pub created_at: String,
}

/// Represents a mail that was taken, with what the request said about it.
#[derive(Clone, Debug)]
pub struct Accepted {
    pub mail: Mail,
    /// Is the idempotency key of its request.
    pub key: Option<String>,
    /// Says when it was taken.
    pub at: Instant,
}

/// Resend documents this as the most addresses in `to`.
const MOST_RECIPIENTS: usize = 50;

#[derive(Deserialize)]
#[serde(untagged)]
enum Addresses {
    One(String),
    Many(Vec<String>),
}

impl Addresses {
    fn list(self) -> Vec<String> {
        match self {
            Self::One(address) => vec![address],
            Self::Many(addresses) => addresses,
        }
    }
}

/// Represents a mail as it is sent: everything may be missing.
#[derive(Deserialize)]
struct Draft {
    from: Option<String>,
    to: Option<Addresses>,
    cc: Option<Addresses>,
    bcc: Option<Addresses>,
    reply_to: Option<Addresses>,
    subject: Option<String>,
    html: Option<String>,
    text: Option<String>,
    template: Option<Value>,
    headers: Option<BTreeMap<String, String>>,
    tags: Option<Vec<Value>>,
    attachments: Option<Value>,
    scheduled_at: Option<Value>,
}

/// Represents a mail that can be sent.
pub(super) struct Valid {
    /// Has no id yet.
    mail: Mail,
    /// Says how many mails of the quota it takes: each address of `to`, `cc` and `bcc` is one
    /// (<https://resend.com/docs/knowledge-base/account-quotas-and-limits>).
    pub(super) recipients: u32,
}

impl Valid {
    pub(super) fn with_id(self, id: String) -> Mail {
        Mail { id, ..self.mail }
    }
}

/// Says where a mail is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Alone,
    /// The mail came in a batch, where attachments and a date are not allowed.
    InBatch,
}

/// Returns whether this mail can be sent now. `refused` are addresses that cannot, in lower case.
pub(super) fn check(
    sent: &Value,
    place: Place,
    now: DateTime<Utc>,
    refused: &HashSet<String>,
) -> Result<Valid, Refusal> {
    let draft = Draft::deserialize(sent)
        .map_err(|error| Refusal::invalid(format!("We found an error with a field: {error}.")))?;
    let from = draft.from.filter(|from| !from.is_empty()).ok_or_else(|| Refusal::missing("from"))?;
    let list = |addresses: Option<Addresses>| addresses.map(Addresses::list).unwrap_or_default();
    let (to, cc, bcc) = (list(draft.to), list(draft.cc), list(draft.bcc));
    let reply_to = list(draft.reply_to);
    if to.is_empty() {
        return Err(Refusal::missing("to"));
    }
    let subject =
        draft.subject.filter(|subject| !subject.is_empty()).ok_or_else(|| Refusal::missing("subject"))?;
    if draft.html.is_none() && draft.text.is_none() && draft.template.is_none() {
        return Err(Refusal::missing("html` or `text"));
    }
    for (field, addresses) in [
        ("from", std::slice::from_ref(&from)),
        ("to", &to),
        ("cc", &cc),
        ("bcc", &bcc),
        ("reply_to", &reply_to),
    ] {
        let fits = |mailbox: &String| {
            address(mailbox).is_some_and(|address| !refused.contains(&address.to_ascii_lowercase()))
        };
        if !addresses.iter().all(fits) {
            return Err(Refusal::invalid(format!(
                "Invalid `{field}` field. The email address needs to follow the `email@example.com` or `Name \
                 <email@example.com>` format."
            )));
        }
    }
    if to.len() > MOST_RECIPIENTS {
        return Err(Refusal::invalid(format!(
            "The `to` field can have at most {MOST_RECIPIENTS} addresses."
        )));
    }
    let tags = draft.tags.unwrap_or_default();
    if !tags.iter().all(is_tag) {
        let message = "Tags should only contain ASCII letters, numbers, underscores, or dashes.";
        return Err(Refusal::invalid(message));
    }
    if place == Place::InBatch {
        for (field, value) in [("attachments", draft.attachments), ("scheduled_at", draft.scheduled_at)] {
            if value.is_some() {
                return Err(Refusal::invalid(format!("The `{field}` field is not supported in batches.")));
            }
        }
    }
    let recipients = u32::try_from(to.len() + cc.len() + bcc.len()).unwrap_or(u32::MAX);
    let mail = Mail {
        id: String::new(),
        from,
        to,
        subject,
        html: draft.html,
        text: draft.text,
        reply_to,
        headers: draft.headers.unwrap_or_default(),
        tags,
        created_at: now.to_rfc3339_opts(SecondsFormat::Millis, true),
    };
    Ok(Valid { mail, recipients })
}

/// Returns the address of a mailbox, which is one or has a name in front of it.
fn address(mailbox: &str) -> Option<&str> {
    let address = match mailbox.strip_suffix('>') {
        Some(named) => named.rsplit_once('<').filter(|(name, _)| !name.contains(['<', '>']))?.1,
        None => mailbox,
    };
    let (local, domain) = address.split_once('@')?;
    let dots = |text: &str| text.split('.').all(|part| !part.is_empty());
    let of_local = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
    let label = |label: &str| {
        label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let valid = local.len() <= 64
        && domain.len() <= 253
        && dots(local)
        && local.chars().all(of_local)
        && dots(domain)
        && domain.contains('.')
        && domain.split('.').all(label);
    valid.then_some(address)
}

fn is_tag(tag: &Value) -> bool {
    let word = |field: &str| {
        tag[field].as_str().is_some_and(|word| {
            (1..=256).contains(&word.len())
                && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        })
    };
    word("name") && word("value")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_address_is_bare_or_has_a_name() {
        for (mailbox, expected) in [
            ("a@example.com", Some("a@example.com")),
            ("a.b+c@mail.example.com", Some("a.b+c@mail.example.com")),
            ("Élodie Dupont <e@example.com>", Some("e@example.com")),
            ("<e@example.com>", Some("e@example.com")),
            ("", None),
            ("a", None),
            ("a@example", None),
            ("@example.com", None),
            ("a@@example.com", None),
            ("a b@example.com", None),
            ("a..b@example.com", None),
            ("a@example..com", None),
            ("a@-example.com", None),
            ("a@example.com ", None),
            ("é@example.com", None),
            ("a@example.com, b@example.com", None),
            ("Élodie <e@example.com", None),
            ("Élodie e@example.com>", None),
            ("É <x> <e@example.com>", None),
        ] {
            assert_eq!(address(mailbox), expected, "{mailbox}");
        }
    }

    #[test]
    fn a_mail_says_what_it_lacks() {
        let good = json!({
            "from": "Comptalyze <bonjour@example.com>", "to": ["a@example.com"], "subject": "s", "html": "h",
            "tags": [{"name": "kind", "value": "reminder-1"}],
        });
        let refused = HashSet::from(["bad@example.com".to_owned()]);
        let message = |changes: Value, place| {
            let mut mail = good.clone();
            for (field, value) in changes.as_object().into_iter().flatten() {
                mail[field] = value.clone();
            }
            check(&mail, place, DateTime::UNIX_EPOCH, &refused).err().map(|refusal| refusal.message)
        };
        assert_eq!(message(json!({}), Place::InBatch), None);
        assert_eq!(message(json!({"to": "a@example.com"}), Place::InBatch), None);
        assert_eq!(message(json!({"attachments": []}), Place::Alone), None);
        for (changes, expected) in [
            (json!({"from": null}), "Missing `from` field."),
            (json!({"subject": ""}), "Missing `subject` field."),
            (json!({"to": []}), "Missing `to` field."),
            (json!({"html": null}), "Missing `html` or `text` field."),
            (json!({"to": ["a@example.com", "b"]}), "Invalid `to` field."),
            (json!({"to": ["Bad <BAD@example.com>"]}), "Invalid `to` field."),
            (json!({"from": "bonjour"}), "Invalid `from` field."),
            (json!({"to": 5}), "We found an error with a field"),
            (json!({"to": vec!["a@example.com"; 51]}), "The `to` field can have at most 50 addresses."),
            (json!({"tags": [{"name": "kind", "value": "à"}]}), "Tags should only contain ASCII"),
            (json!({"attachments": []}), "The `attachments` field is not supported in batches."),
            (json!({"scheduled_at": "in 1 min"}), "The `scheduled_at` field is not supported"),
        ] {
            let found = message(changes.clone(), Place::InBatch).unwrap_or_default();
            assert!(found.starts_with(expected), "{changes}: {found}");
        }
    }
}
