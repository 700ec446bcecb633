//! Compares the mails of a round, as the mail service took them: who got which.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::seed::people::{Mail, People};
use stand_ins::resend::{Accepted, Resend};

/// Says how often each address got each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Inbox(BTreeMap<(String, Mail), usize>);

impl Inbox {
    pub(super) fn read(resend: &Resend) -> Self {
        let accepted = resend.accepted();
        Self::of(
            accepted.iter().flat_map(|accepted| {
                accepted.mail.to.iter().map(|address| (address.clone(), kind(accepted)))
            }),
        )
    }

    /// Returns what must have arrived.
    pub(super) fn expected(mails: &[(Uuid, Mail)], people: &People) -> Self {
        let address = |user: &Uuid| people.addresses.get(user).cloned().unwrap_or_default();
        Self::of(mails.iter().map(|(user, mail)| (address(user), *mail)))
    }

    fn of(mails: impl Iterator<Item = (String, Mail)>) -> Self {
        let mut counts = BTreeMap::new();
        for mail in mails {
            *counts.entry(mail).or_default() += 1;
        }
        Self(counts)
    }

    pub(super) fn len(&self) -> usize {
        self.0.values().sum()
    }

    /// Returns whom something else reached than `expected`.
    pub(super) fn differences(&self, expected: &Self) -> Vec<String> {
        let mut keys: Vec<_> = self.0.keys().chain(expected.0.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        let count = |inbox: &Self, key| inbox.0.get(key).copied().unwrap_or_default();
        keys.into_iter()
            .map(|key| (key, count(self, key), count(expected, key)))
            .filter(|(_, is, must)| is != must)
            .map(|((address, mail), is, must)| {
                format!("{address} got {is} of {} instead of {must}", word(*mail))
            })
            .collect()
    }
}

/// Prints every mail, by kind, with who got it.
pub(super) fn print(resend: &Resend) {
    let accepted = resend.accepted();
    let mut lines: Vec<(Mail, String, &str)> = accepted
        .iter()
        .map(|accepted| (kind(accepted), accepted.mail.to.join(", "), accepted.mail.subject.as_str()))
        .collect();
    lines.sort_unstable();
    for (mail, to, subject) in lines {
        println!("   {:<9} {to:<34} {subject}", word(mail));
    }
}

fn word(mail: Mail) -> &'static str {
    match mail {
        Mail::Offer => "J+3",
        Mail::Reminder => "reminder",
        Mail::Recap => "recap",
        Mail::Alert => "alert",
        Mail::Reconnect => "reconnect",
    }
}

/// Returns the kind of a mail, by the link that stops it. Alerts and "connect again" have none.
fn kind(accepted: &Accepted) -> Mail {
    let link = accepted.mail.headers.get("List-Unsubscribe").map(String::as_str).unwrap_or_default();
    let of = |kind: &str| link.contains(&format!(".{kind}."));
    if of("marketing_day3") {
        Mail::Offer
    } else if of("monthly_reminder") {
        Mail::Reminder
    } else if of("monthly_recap") || of("definitive_month") {
        Mail::Recap
    } else if accepted.mail.subject.starts_with("Votre connexion à") {
        Mail::Reconnect
    } else {
        Mail::Alert
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_mail_and_one_too_many_are_told() {
        let inbox = |mails: &[(&str, Mail)]| Inbox::of(mails.iter().map(|(to, mail)| ((*to).into(), *mail)));
        let must = inbox(&[("a", Mail::Recap), ("b", Mail::Alert), ("c", Mail::Offer)]);
        let is = inbox(&[("a", Mail::Recap), ("a", Mail::Recap), ("c", Mail::Offer)]);
        assert_eq!(is.len(), 3);
        assert_eq!(is.differences(&must), ["a got 2 of recap instead of 1", "b got 0 of alert instead of 1"]);
        assert!(must.differences(&must.clone()).is_empty());
    }
}
