//! Notes what the mail service reports of mails that left (<https://resend.com/docs/webhooks/event-types>). It is read
//! leniently: kinds of event and fields that come later are no fault.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    deadline::Deadline,
    supabase::{Supabase, SupabaseError},
};

/// Represents an event, as far as we look at it.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Raw")]
pub struct Event {
    kind: String,
    data: Data,
}

/// Represents an event as it comes.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default = "nothing")]
    data: Value,
}

fn nothing() -> Value {
    Value::Object(Map::new())
}

impl TryFrom<Raw> for Event {
    type Error = serde_json::Error;

    /// Only of what we act on does the rest have to be as documented: a refused event comes again and again.
    fn try_from(Raw { kind, data }: Raw) -> Result<Self, serde_json::Error> {
        let data = match serde_json::from_value(data) {
            Err(error) if ACTED_ON.contains(&kind.as_str()) => return Err(error),
            data => data.unwrap_or_default(),
        };
        Ok(Self { kind, data })
    }
}

const BOUNCED: &str = "email.bounced";
const COMPLAINED: &str = "email.complained";
const FAILED: &str = "email.failed";
const SUPPRESSED: &str = "email.suppressed";
const DELAYED: &str = "email.delivery_delayed";
const DELIVERED: &str = "email.delivered";
const ADDRESS_ADDED: &str = "suppression.added";
const ADDRESS_REMOVED: &str = "suppression.removed";

/// Lists the events that a webhook of ours has to be subscribed to: those that something follows from.
pub const ACTED_ON: [&str; 8] =
    [BOUNCED, COMPLAINED, FAILED, SUPPRESSED, DELAYED, DELIVERED, ADDRESS_ADDED, ADDRESS_REMOVED];

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Data {
    email_id: Option<String>,
    to: Vec<String>,
    bounce: Option<Bounce>,
    failed: Option<Failed>,
    /// Holds the address of the events that are about one.
    email: Option<String>,
    /// Says why an address is on the list: `bounce`, `complaint`, `manual`.
    origin: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Bounce {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "subType")]
    sub_kind: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Failed {
    reason: Option<String>,
}

impl Event {
    fn bounced_as(&self, kind: &str) -> bool {
        let told = self.data.bounce.as_ref().and_then(|bounce| bounce.kind.as_deref());
        told.is_some_and(|told| told.eq_ignore_ascii_case(kind))
    }

    /// Returns whether a mailbox had no room. Every other bounce that passes may be an out-of-office note: Amazon SES, which
    /// the service sends with, reports those as transient and general
    /// (<https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html#bounce-types>).
    fn is_mailbox_full(&self) -> bool {
        let told = self.data.bounce.as_ref().and_then(|bounce| bounce.sub_kind.as_deref());
        told.is_some_and(|told| told.eq_ignore_ascii_case("mailboxfull"))
    }

    /// Returns what became of the mail, as the database ranks it (`jobs.feedback_rank`).
    fn outcome(&self) -> Option<&'static str> {
        match self.kind.as_str() {
            BOUNCED if self.bounced_as("permanent") => Some("bounced"),
            BOUNCED if self.bounced_as("transient") && self.is_mailbox_full() => Some("mailbox_full"),
            BOUNCED if self.bounced_as("transient") => Some("returned"),
            COMPLAINED => Some("complained"),
            FAILED if self.is_the_address() => Some("refused"),
            FAILED => Some("failed"),
            SUPPRESSED => Some("suppressed"),
            DELAYED => Some("delayed"),
            DELIVERED => Some("delivered"),
            _ => None,
        }
    }

    /// Returns whether a mail failed for its recipient: all the other reasons that the vendor names are ours, or pass.
    fn is_the_address(&self) -> bool {
        let reason =
            self.data.failed.as_ref().and_then(|failed| failed.reason.as_deref()).unwrap_or_default();
        let reason = reason.to_ascii_lowercase();
        reason.contains("recipient") || reason.contains("to_address") || reason.contains("invalid_to")
    }

    /// Returns why the address gets no further mail: it does not exist, its owner has complained, or the service keeps
    /// mails from it.
    fn suppresses(&self) -> Option<&'static str> {
        match self.kind.as_str() {
            BOUNCED if self.bounced_as("permanent") => Some("bounced"),
            COMPLAINED => Some("complained"),
            SUPPRESSED => Some("suppressed"),
            ADDRESS_ADDED => Some(match self.data.origin.as_deref() {
                Some("bounce") => "bounced",
                Some("complaint") => "complained",
                _ => "suppressed",
            }),
            _ => None,
        }
    }

    /// Returns what the database is told: of the mail, or else of the address.
    fn report(&self) -> Option<&'static str> {
        if self.kind == ADDRESS_REMOVED { Some("lifted") } else { self.outcome().or(self.suppresses()) }
    }

    /// Notes the event, once for its id; it came in at `now`. `false`: it was known.
    pub async fn note(
        &self,
        id: &str,
        now: DateTime<Utc>,
        supabase: &Supabase,
        deadline: &Deadline,
    ) -> Result<bool, SupabaseError> {
        // With several recipients it is unknown whose mailbox it was. Our mails have one recipient.
        let address = match (&self.data.to[..], self.data.email.as_deref()) {
            ([address], _) => Some(bare(address)),
            ([], Some(address)) => Some(bare(address)),
            _ => None,
        };
        let arguments = json!({
            "p_event_id": id, "p_kind": self.kind.chars().take(100).collect::<String>(),
            "p_provider_id": self.data.email_id, "p_report": self.report(), "p_address": address, "p_now": now,
        });
        supabase.rpc("mail_feedback", &arguments, deadline).await
    }
}

/// Returns the address in `Name <address>`.
fn bare(address: &str) -> &str {
    address.rsplit_once('<').map_or(address, |(_, rest)| rest.trim_end_matches('>'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::damage::damaged;

    #[rstest]
    #[case(r#"{"type":"email.bounced","data":{"to":["a@b.fr"],"bounce":{"type":"Permanent","subType":"General","message":"x"}}}"#, Some("bounced"))]
    #[case(r#"{"type":"email.bounced","data":{"to":["a@b.fr"],"bounce":{"type":"Transient"}}}"#, None)]
    #[case(r#"{"type":"email.bounced","data":{"to":["a@b.fr"],"bounce":{}}}"#, None)]
    #[case(r#"{"type":"email.bounced","data":{"to":["a@b.fr"]}}"#, None)]
    #[case(r#"{"type":"email.complained","created_at":"2026-11-24T10:00:00.000Z","data":{"email_id":"x","to":["a@b.fr"]}}"#, Some("complained"))]
    #[case(r#"{"type":"email.delivered","data":{"email_id":"x","to":["a@b.fr"],"new":{"deep":[1]}}}"#, None)]
    #[case(r#"{"type":"contact.created","data":{}}"#, None)]
    #[case(r#"{"type":"later.than.us"}"#, None)]
    #[case(r#"{"type":"domain.updated","data":null}"#, None)]
    #[case(r#"{"type":"contact.updated","data":{"to":"a@b.fr","bounce":7}}"#, None)]
    #[case(r#"{"type":"later.than.us","data":[1]}"#, None)]
    fn permanent_bounces_and_complaints_suppress(#[case] body: &str, #[case] suppresses: Option<&str>) {
        let event: Event = serde_json::from_str(body).unwrap();
        assert_eq!(event.suppresses(), suppresses);
    }

    /// The bodies are the vendor's examples, as far as we look at them.
    #[rstest]
    #[case(r#"{"type":"email.failed","data":{"email_id":"x","to":["a@b.fr"],"failed":{"reason":"reached_daily_quota"}}}"#, Some("failed"), None)]
    #[case(r#"{"type":"email.failed","data":{"email_id":"x","to":["a@b.fr"]}}"#, Some("failed"), None)]
    #[case(
        r#"{"type":"email.failed","data":{"failed":{"reason":"invalid_recipient"}}}"#,
        Some("refused"),
        None
    )]
    #[case(r#"{"type":"email.suppressed","data":{"to":["a@b.fr"],"suppressed":{"type":"OnAccountSuppressionList"}}}"#, Some("suppressed"), Some("suppressed"))]
    #[case(r#"{"type":"email.delivery_delayed","data":{"to":["a@b.fr"]}}"#, Some("delayed"), None)]
    #[case(r#"{"type":"email.delivered","data":{"to":["a@b.fr"]}}"#, Some("delivered"), None)]
    #[case(
        r#"{"type":"email.bounced","data":{"bounce":{"type":"Transient","subType":"MailboxFull"}}}"#,
        Some("mailbox_full"),
        None
    )]
    #[case(
        r#"{"type":"email.bounced","data":{"bounce":{"type":"Transient","subType":"General"}}}"#,
        Some("returned"),
        None
    )]
    #[case(r#"{"type":"email.bounced","data":{"bounce":{"type":"Undetermined"}}}"#, None, None)]
    #[case(
        r#"{"type":"suppression.added","data":{"email":"a@b.fr","origin":"manual"}}"#,
        None,
        Some("suppressed")
    )]
    #[case(
        r#"{"type":"suppression.added","data":{"email":"a@b.fr","origin":"complaint"}}"#,
        None,
        Some("complained")
    )]
    #[case(r#"{"type":"suppression.removed","data":{"email":"a@b.fr","origin":"bounce"}}"#, None, None)]
    fn accepted_is_not_delivered(
        #[case] body: &str,
        #[case] outcome: Option<&str>,
        #[case] suppresses: Option<&str>,
    ) {
        let event: Event = serde_json::from_str(body).unwrap();
        assert_eq!((event.outcome(), event.suppresses()), (outcome, suppresses));
    }

    #[rstest]
    #[case(r#"{"type":"email.bounced","data":{"to":"a@b.fr"}}"#)]
    #[case(r#"{"type":"email.bounced","data":null}"#)]
    #[case(r#"{"type":"email.complained","data":{"to":[7]}}"#)]
    #[case(r#"{"type":7,"data":{}}"#)]
    #[case(r#"{"data":{}}"#)]
    fn what_we_would_act_on_has_to_be_whole(#[case] body: &str) {
        assert!(serde_json::from_str::<Event>(body).is_err());
    }

    proptest! {
        /// Whatever Resend may send, only a bounce that is permanent or a complaint keeps mails
        /// away.
        #[test]
        fn only_bounces_and_complaints_suppress(event in damaged(serde_json::json!({
            "type": "email.bounced", "created_at": "2026-11-24T10:00:00.000Z",
            "data": {"email_id": "x", "to": ["a@b.fr"], "bounce": {"type": "Permanent", "message": "x"}},
        }))) {
            if let Ok(event) = serde_json::from_value::<Event>(event.clone()) {
                let sound = event.suppresses().is_none()
                    || event.suppresses() == Some("bounced") && event.kind == "email.bounced";
                prop_assert!(sound, "{:?}", event);
            }
        }

        #[test]
        fn no_body_panics(body: Vec<u8>, address in "\\PC{0,40}") {
            let _ = serde_json::from_slice::<Event>(&body);
            prop_assert!(address.contains(bare(&address)));
        }
    }

    #[test]
    fn the_address_is_read_without_its_name() {
        assert_eq!((bare("a@b.fr"), bare("Camille <a@b.fr>")), ("a@b.fr", "a@b.fr"));
    }
}
