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
            Err(error) if matches!(kind.as_str(), BOUNCED | COMPLAINED) => return Err(error),
            data => data.unwrap_or_default(),
        };
        Ok(Self { kind, data })
    }
}

const BOUNCED: &str = "email.bounced";
const COMPLAINED: &str = "email.complained";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Data {
    email_id: Option<String>,
    to: Vec<String>,
    bounce: Option<Bounce>,
}

#[derive(Debug, Deserialize)]
struct Bounce {
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl Event {
    /// Returns why the recipient gets no further mail: the address does not exist, or its owner has complained.
    fn suppresses(&self) -> Option<&'static str> {
        let permanent = || {
            let kind = self.data.bounce.as_ref().and_then(|bounce| bounce.kind.as_deref());
            kind.is_some_and(|kind| kind.eq_ignore_ascii_case("permanent"))
        };
        match self.kind.as_str() {
            BOUNCED if permanent() => Some("bounced"),
            COMPLAINED => Some("complained"),
            _ => None,
        }
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
        let address = match &self.data.to[..] {
            [address] => Some(bare(address)),
            _ => None,
        };
        let arguments = json!({
            "p_event_id": id, "p_kind": self.kind.chars().take(100).collect::<String>(),
            "p_provider_id": self.data.email_id, "p_suppress": self.suppresses(), "p_address": address,
            "p_now": now,
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
        /// Whatever Resend may send: only a bounce that is permanent or a complaint keeps mails away.
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
