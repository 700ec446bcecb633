//! Says what the mail service's answer means for each mail of a batch: accepted, refused for what is in it, held back by a
//! cause that all mails have in common, or unknown.

use std::{collections::HashSet, time::Duration};

use resend_rs::{Error, types::SendEmailBatchPermissiveResponse};
use serde_json::Value;

use crate::failure::Failure;

/// The next request waits so long if the service refuses for its rate limit and says nothing of when to come back.
const UNSAID_WAIT: Duration = Duration::from_secs(1);

/// The mail service refuses a mail for what is in it, as a rule for its recipient's address.
pub const MAIL_REFUSED: &str = "refused";

/// Says what came of one mail of a batch that was looked at mail by mail.
#[derive(Clone, Debug)]
pub(super) enum OfMail {
    /// It was accepted under this id.
    Accepted(String),
    /// It is refused for what is in it.
    Refused(Failure),
    /// It is refused for what all mails have in common: the sender, the domain, the key. It has not left, and will.
    Blocked(Failure),
}

impl OfMail {
    /// Returns what all mails have in common, where this one is refused for it.
    pub(super) fn blocked(&self) -> Option<&Failure> {
        match self {
            Self::Blocked(failure) => Some(failure),
            Self::Accepted(_) | Self::Refused(_) => None,
        }
    }
}

/// Says what came of a batch's request.
#[derive(Debug)]
pub(super) enum Sent {
    /// Each mail has an outcome, in order: the service's id, or why it refuses this one.
    Accepted(Vec<OfMail>),
    /// The same key came with another payload before, and that one was accepted.
    AcceptedBefore,
    /// Nothing of it was or will be accepted, because of what is in it.
    Refused(Failure),
    /// Nothing was accepted by this request, and nothing would be now. `quota` says that, by the
    /// headers, a quota is used up and not the rate.
    RateLimited { wait: Duration, quota: bool },
    /// Another request with this key is under way.
    UnderWay,
    /// Our own credentials, domain or address are refused: nothing of anybody's will be accepted.
    Blocked(Failure),
    /// Something else than the mail service answers at its address; whether it passed the request on, nobody can tell.
    Foreign(Failure),
    /// No connection came about, so the request was never made.
    NotMade(Failure),
    /// No time was left, so the request was not made, either.
    OutOfTime,
    /// It may have been accepted or not.
    Unknown(Failure),
}

pub(super) fn failure(code: &str, message: impl Into<String>) -> Failure {
    Failure { code: code.into(), message: message.into() }
}

/// Returns each mail's own outcome. An answer that does not cover every mail is treated as no answer.
pub(super) fn accepted(answer: Value, mails: usize) -> Sent {
    let Ok(answer) = serde_json::from_value::<SendEmailBatchPermissiveResponse>(answer) else {
        return bad_answer();
    };
    let mut outcomes: Vec<Option<OfMail>> = vec![None; mails];
    let mut sound = true;
    for error in &answer.errors {
        match usize::try_from(error.index).ok().and_then(|index| outcomes.get_mut(index)) {
            Some(outcome) => {
                *outcome = Some(match common_cause(&error.message) {
                    Some(failure) => OfMail::Blocked(failure),
                    None => OfMail::Refused(refused(&error.message)),
                });
            }
            // Some mail is refused, and nobody can tell which.
            None => sound = false,
        }
    }
    let ids: Vec<String> = answer.data.iter().map(|mail| mail.id.to_string()).collect();
    sound &= ids.iter().collect::<HashSet<_>>().len() == ids.len() && ids.iter().all(|id| !id.is_empty());
    let mut ids = ids.into_iter();
    for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_none()) {
        *outcome = ids.next().map(OfMail::Accepted);
    }
    let all: Option<Vec<_>> = outcomes.into_iter().collect();
    match (all, ids.next()) {
        (Some(all), None) if sound => Sent::Accepted(all),
        _ => Sent::Unknown(failure(
            "bad_answer",
            "La réponse de Resend ne rend pas compte de tous les courriels.",
        )),
    }
}

/// Returns the service's own words, which may hold the address: cut out, for logs and answers are no place for it.
fn refused(message: &str) -> Failure {
    let words: String = without_addresses(message).chars().take(200).collect();
    failure(MAIL_REFUSED, format!("Resend a refusé ce courriel : {words}"))
}

/// Returns the service's words without addresses, whose text a user has chosen: also a quoted one, which may hold spaces.
fn without_addresses(message: &str) -> String {
    let mut message = message.to_owned();
    while let Some(end) = message.find("\"@") {
        let start = message[..end].rfind('"').unwrap_or(end);
        message.replace_range(start..=end, "");
    }
    let words: Vec<&str> = message.split_whitespace().filter(|word| !word.contains('@')).collect();
    words.join(" ")
}

/// Returns the failure that a refusal's words lay on all our mails alike: nothing of ours is accepted until somebody mends
/// it, whichever mail it was said of. What names the recipient is that mail's own; what the recipient's address says is
/// not the service's word.
///
/// Sources: <https://resend.com/docs/api-reference/errors> (of a deleted key 400 and 401 `validation_error` say "API key is
/// invalid"), <https://resend.com/docs/knowledge-base/403-error-domain-mismatch>.
fn common_cause(message: &str) -> Option<Failure> {
    let message = without_addresses(message).to_lowercase();
    if message.contains("`to`") {
        return None;
    }
    let says = |words: &str| message.contains(words);
    if says("api key") {
        return Some(failure("mail_key", "La clé Resend est refusée ; vérifiez RESEND_API_KEY."));
    }
    let sender = says("`from`") || says("from address") || says("from field") || says("sender");
    let domain = says("domain") && (says("verif") || says("not allowed") || says("not found"));
    (sender || domain || says("testing emails")).then(refused_sender)
}

fn refused_sender() -> Failure {
    failure("mail_domain", "Resend refuse l’expéditeur ; vérifiez COMPANY_FROM_EMAIL.")
}

pub(super) fn kind(error: &Error) -> String {
    match error {
        Error::Resend(error) => error.name.clone(),
        Error::RateLimit { .. } => "rate_limit".into(),
        Error::Http(error) if error.is_connect() => "connect".into(),
        Error::Http(_) => "network".into(),
        _ => "unexpected".into(),
    }
}

pub(super) fn classify(error: &Error) -> Sent {
    match error {
        Error::RateLimit { ratelimit_reset, ratelimit_remaining, .. } => Sent::RateLimited {
            wait: ratelimit_reset.map_or(UNSAID_WAIT, Duration::from_secs).max(UNSAID_WAIT),
            quota: ratelimit_remaining.is_some_and(|remaining| remaining > 0),
        },
        Error::Resend(error) => match (error.status_code, error.name.as_str()) {
            (409, "invalid_idempotent_request") => Sent::AcceptedBefore,
            (409, "concurrent_idempotent_requests") => Sent::UnderWay,
            (_, "invalid_from_address") => Sent::Blocked(refused_sender()),
            (400 | 413 | 422, _) => match common_cause(&error.message) {
                Some(failure) => Sent::Blocked(failure),
                None => Sent::Refused(refused(&error.message)),
            },
            (401, _) => {
                Sent::Blocked(failure("mail_key", "La clé Resend est refusée ; vérifiez RESEND_API_KEY."))
            }
            (403, name @ ("invalid_api_key" | "suspended_api_key" | "restricted_api_key")) => Sent::Blocked(
                failure("mail_key", format!("La clé Resend est refusée ({name}) ; vérifiez RESEND_API_KEY.")),
            ),
            // 451: they see a problem of safety in what we send.
            (403 | 451, _) => Sent::Blocked(failure(
                "mail_domain",
                "Resend refuse d’envoyer pour ce compte ; vérifiez le domaine de COMPANY_FROM_EMAIL et l’état du compte.",
            )),
            (404 | 405, _) => Sent::Blocked(failure(
                "mail_address",
                "Resend ne connaît pas cette adresse ; vérifiez RESEND_BASE_URL.",
            )),
            (status, _) => Sent::Unknown(failure("mail_service", format!("Resend a répondu {status}."))),
        },
        Error::Http(error) if error.is_connect() => {
            Sent::NotMade(failure("connect", "Resend est injoignable."))
        }
        // What cannot be asked was never accepted: no mail of it may become unknown.
        Error::Http(error) if error.is_builder() => Sent::Blocked(failure(
            "mail_request",
            "La requête à Resend ne peut pas être formée ; vérifiez RESEND_API_KEY et RESEND_BASE_URL.",
        )),
        Error::Http(error) if error.is_timeout() => {
            Sent::Unknown(failure("timeout", "Resend n’a pas répondu à temps."))
        }
        error if is_foreign(error) => Sent::Foreign(foreign()),
        Error::Http(_) => Sent::Unknown(failure("network", "La connexion à Resend a été coupée.")),
        // The crate drops the status of an error that is not written as Resend writes its own.
        Error::Parse { message, .. } => match refused_on_the_way(message) {
            Some(status) => Sent::Blocked(failure(
                "mail_proxy",
                format!(
                    "La requête à Resend a été refusée en chemin ({status}) ; vérifiez RESEND_BASE_URL et ce qui se trouve entre ce service et Resend."
                ),
            )),
            None => bad_answer(),
        },
        Error::Other(_) => bad_answer(),
    }
}

/// Returns whether what calls itself no error is a page, or nothing at all: a redirect, a proxy, somebody else's site. The
/// mail service answers in JSON. An answer that was cut on its way is not meant.
pub(super) fn is_foreign(error: &Error) -> bool {
    let Error::Http(error) = error else { return false };
    let read = std::error::Error::source(error).and_then(|source| source.downcast_ref::<serde_json::Error>());
    read.is_some_and(|error| error.is_syntax() || (error.is_eof() && error.column() == 0))
}

pub(super) fn foreign() -> Failure {
    failure("mail_address", "Ce n’est pas Resend qui répond à cette adresse ; vérifiez RESEND_BASE_URL.")
}

fn bad_answer() -> Sent {
    Sent::Unknown(failure("bad_answer", "La réponse de Resend est inattendue."))
}

/// Returns the status of an error that something before Resend gives, where its page says one that means that nothing was
/// passed on. Whatever comes after the passing on (a gateway's 5xx, a timeout) says nothing of the mails.
fn refused_on_the_way(page: &str) -> Option<u16> {
    const NOT_PASSED_ON: [u16; 13] = [400, 401, 403, 404, 405, 406, 407, 411, 413, 414, 415, 431, 451];
    let page: String = page.chars().take(4_096).collect::<String>().to_lowercase();
    let status = if let Ok(json) = serde_json::from_str::<Value>(&page) {
        let named = ["statuscode", "status", "code"].into_iter().find_map(|name| json[name].as_u64())?;
        u16::try_from(named).ok()?
    } else {
        // <title>403 Forbidden</title>, <h1>403 ERROR</h1>, or a text that begins so.
        let within = |tag: &str| Some(page.split_once(tag)?.1.split_once('>')?.1.split_once('<')?.0);
        let text = (!page.trim_start().starts_with('<')).then_some(page.as_str());
        [within("<title"), within("<h1"), text].into_iter().flatten().find_map(|words| {
            words.split(|c: char| !c.is_ascii_alphanumeric()).take(4).find_map(|word| {
                word.parse().ok().filter(|status| word.len() == 3 && (400..600).contains(status))
            })
        })?
    };
    NOT_PASSED_ON.contains(&status).then_some(status)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::damage::damaged;

    /// Makes an answer with these ids, and refusals of these mails.
    fn answer(ids: &[&str], refused: &[i64]) -> Value {
        let ids: Vec<_> = ids.iter().map(|id| json!({"id": id})).collect();
        let errors: Vec<_> =
            refused.iter().map(|index| json!({"index": index, "message": "to a@b.fr"})).collect();
        json!({"data": ids, "errors": errors})
    }

    /// Returns what became of each of three mails: the id, `-` where it is refused; `None`: nobody can tell.
    fn of_three(answer: Value) -> Option<String> {
        match accepted(answer, 3) {
            Sent::Accepted(outcomes) => Some(
                outcomes
                    .into_iter()
                    .map(|one| match one {
                        OfMail::Accepted(id) => id,
                        OfMail::Refused(_) => "-".into(),
                        OfMail::Blocked(failure) => failure.code,
                    })
                    .collect::<Vec<_>>()
                    .join(" "),
            ),
            Sent::Unknown(_) => None,
            other => panic!("{other:?}"),
        }
    }

    #[rstest]
    #[case::all(&["a", "b", "c"], &[], Some("a b c"))]
    #[case::one_refused(&["a", "c"], &[1], Some("a - c"))]
    #[case::twice_refused(&["a", "c"], &[1, 1], Some("a - c"))]
    #[case::all_refused(&[], &[2, 0, 1], Some("- - -"))]
    #[case::too_few(&["a", "b"], &[], None)]
    #[case::too_many(&["a", "b", "c", "d"], &[], None)]
    #[case::more_than_are_left(&["a", "b", "c"], &[1], None)]
    #[case::fewer_than_are_left(&["a"], &[1], None)]
    #[case::a_mail_that_is_none(&["a", "b", "c"], &[3], None)]
    #[case::below_the_first(&["a", "b", "c"], &[-1], None)]
    #[case::counted_from_one(&["a", "b"], &[3], None)]
    #[case::one_right_one_wrong(&["a", "b"], &[0, 7], None)]
    #[case::one_id_twice(&["a", "a", "b"], &[], None)]
    #[case::an_empty_id(&["a", "", "b"], &[], None)]
    #[case::nothing(&[], &[], None)]
    fn every_mail_is_accounted_for(
        #[case] ids: &[&str],
        #[case] refused: &[i64],
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(of_three(answer(ids, refused)).as_deref(), expected);
    }

    /// One cause of all mails, told of each: nobody's mail is refused for it.
    #[rstest]
    #[case(
        "The comptalyze.example domain is not verified. Please, add and verify your domain.",
        Some("mail_domain")
    )]
    #[case("Invalid `from` field. The email address needs to follow the format.", Some("mail_domain"))]
    #[case("You can only send testing emails to your own email address.", Some("mail_domain"))]
    #[case("API key is invalid", Some("mail_key"))]
    #[case("Invalid `to` field. The email address needs to follow the format.", None)]
    #[case("The `subject` field is too long.", None)]
    #[case("Invalid `to` field: its domain was not found.", None)]
    #[case("The address the.sender.domain.verified@example.test is not allowed.", None)]
    #[case("\"api key from address\"@example.test is no address.", None)]
    #[case("Invalid `from` field: it follows `email@example.com`, not a@b.", Some("mail_domain"))]
    fn a_common_cause_is_one_cause(#[case] message: &str, #[case] code: Option<&str>) {
        assert_eq!(common_cause(message).map(|failure| failure.code).as_deref(), code);
        let told = json!({"data": [{"id": "a"}, {"id": "c"}], "errors": [{"index": 1, "message": message}]});
        assert_eq!(of_three(told), Some(format!("a {} c", code.unwrap_or("-"))));
    }

    /// What a proxy refused was never accepted: no mail of it becomes unknown. What may have been passed on does.
    #[rstest]
    #[case::nginx(
        "<html>\r\n<head><title>403 Forbidden</title></head>\r\n<body><center><h1>403 Forbidden</h1></center>",
        Some(403)
    )]
    #[case::too_large("<html><head><title>413 Request Entity Too Large</title></head></html>", Some(413))]
    #[case::a_heading(
        "<!DOCTYPE html><TITLE>ERROR: The request could not be satisfied</TITLE><H1 class=\"x\">403 ERROR</H1>",
        Some(403)
    )]
    #[case::a_text("404: Not Found", Some(404))]
    #[case::another_shape(r#"{"status": 405, "error": "no"}"#, Some(405))]
    #[case::a_gateway("<html><head><title>502 Bad Gateway</title></head></html>", None)]
    #[case::a_gateway_that_waited("<html><head><title>504 Gateway Time-out</title></head></html>", None)]
    #[case::a_slow_request("<html><head><title>408 Request Timeout</title></head></html>", None)]
    #[case::a_conflict(r#"{"status": 409}"#, None)]
    #[case::no_status("<html><head><title>Attention</title></head><body>404</body></html>", None)]
    #[case::a_number_in_a_text("Error of 40311 requests", None)]
    #[case::nothing("", None)]
    fn what_a_proxy_refused_is_known(#[case] page: &str, #[case] status: Option<u16>) {
        assert_eq!(refused_on_the_way(page), status);
        let sent = classify(&Error::Parse { message: page.to_owned(), source: None });
        assert_eq!(
            matches!(&sent, Sent::Blocked(failure) if failure.code == "mail_proxy"),
            status.is_some(),
            "{sent:?}"
        );
    }

    proptest! {
        /// A page of whatever letters is read without a panic.
        #[test]
        fn any_page_is_read(page in "(<title>|<h1|>|<|4[0-9]{2}|é|\\PC){0,40}") {
            let _status = refused_on_the_way(&page);
        }

        /// Whatever the answer is, nobody can tell, or each mail has an outcome of its own and each
        /// id of the answer is one mail's.
        #[test]
        fn a_damaged_answer_sends_nothing_wrongly(answer in damaged(answer(&["a", "b"], &[1]))) {
            match accepted(answer.clone(), 3) {
                Sent::Accepted(outcomes) => {
                    prop_assert_eq!(outcomes.len(), 3);
                    let told = answer["data"].as_array().unwrap();
                    // serde reads a list as an object's fields, in order.
                    let id = |mail: &Value| mail.get("id").or(mail.get(0)).and_then(Value::as_str).map(str::to_owned);
                    let told: Vec<_> = told.iter().map(|mail| id(mail).unwrap()).collect();
                    let id_of = |one: &OfMail| match one {
                        OfMail::Accepted(id) => Some(id.clone()),
                        OfMail::Refused(_) | OfMail::Blocked(_) => None,
                    };
                    let sent: Vec<_> = outcomes.iter().filter_map(id_of).collect();
                    prop_assert_eq!(sent, told);
                    let errors = answer["errors"].as_array();
                    let index = |error: &Value| error.get("index").or(error.get(0)).and_then(Value::as_i64);
                    for index in errors.into_iter().flatten().map(|error| index(error).unwrap()) {
                        prop_assert!(id_of(&outcomes[usize::try_from(index).unwrap()]).is_none());
                    }
                }
                Sent::Unknown(failure) => prop_assert_eq!(failure.code, "bad_answer"),
                other => prop_assert!(false, "{:?}", other),
            }
        }

        /// What the service says of a mail may hold its address.
        #[test]
        fn a_refusal_repeats_no_address(before in "\\PC{0,30}", after in "\\PC{0,30}") {
            let message = refused(&format!("{before}camille@example.test{after}")).message;
            prop_assert!(!message.contains("camille@") && message.chars().count() < 260, "{}", message);
        }
    }
}
