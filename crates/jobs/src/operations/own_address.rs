//! Looks whether `JOBS_BASE_URL` leads to this deployment: links in mails, the webhook and the chain's next call all go there.
//!
//! It opens the page behind a link of nobody's, which changes nothing and is written down nowhere. Only a deployment with
//! our keys takes that link for its own.

use std::time::Duration;

use uuid::Uuid;

use crate::{config::Config, deadline::Deadline, email::links, http, mail_kind::MailKind};

/// The page may take so long.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Says what answers at our own address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum OwnAddress {
    Ours,
    /// It leads elsewhere: nobody follows, neither a cron nor our own call with its secret.
    Redirects,
    /// The platform, or somebody else, asks for a login first.
    AsksForLogin,
    /// A deployment of this service with other keys answers.
    OtherDeployment,
    /// Something else answers, with this status.
    OtherService(u16),
    /// Nobody answers, or not in time.
    Unreachable,
}

/// The page of a link that is ours says so in its title.
const OURS: &str = "Ne plus recevoir ces courriels";
/// The page of a link that is not ours says this.
const NOT_OURS: &str = "Ce lien n’est pas valable";

/// Looks once. `None`: not in production, where no address is this deployment's own.
pub(crate) async fn look(
    client: &reqwest::Client,
    config: &Config,
    deadline: &Deadline,
) -> Option<OwnAddress> {
    let own = config.own_url.as_ref()?;
    let keys = config.link_keys.as_ref().ok()?;
    let base = own.as_str().trim_end_matches('/');
    let link = links::unsubscribe(base, keys, Uuid::nil(), MailKind::MonthlyReminder)?;
    let timeout = deadline.request_timeout(TIMEOUT)?;
    Some(match http::fetch(client.get(link), timeout).await {
        Ok(answer) => judge(answer.status.as_u16(), &String::from_utf8_lossy(&answer.body)),
        Err(_) => OwnAddress::Unreachable,
    })
}

fn judge(status: u16, page: &str) -> OwnAddress {
    match status {
        200 if page.contains(OURS) => OwnAddress::Ours,
        300..=399 => OwnAddress::Redirects,
        _ if page.contains(NOT_OURS) => OwnAddress::OtherDeployment,
        401 | 403 => OwnAddress::AsksForLogin,
        _ => OwnAddress::OtherService(status),
    }
}

impl OwnAddress {
    /// Says in French what is wrong; `None` where nothing is, or nothing is known.
    pub(crate) fn fault(self) -> Option<String> {
        let what = match self {
            Self::Ours | Self::Unreachable => return None,
            Self::Redirects => "JOBS_BASE_URL redirige ailleurs.".to_owned(),
            Self::AsksForLogin => "JOBS_BASE_URL demande une connexion avant de répondre.".to_owned(),
            Self::OtherDeployment => "JOBS_BASE_URL est l’adresse d’un autre déploiement.".to_owned(),
            Self::OtherService(status) => {
                format!("JOBS_BASE_URL est l’adresse d’un autre service (statut {status}).")
            }
        };
        Some(what)
    }

    /// Says what follows from a fault and what to do.
    pub(crate) const REMEDY: &'static str = "Les liens des courriels, le webhook et la reprise de la file passent par cette adresse : y mettre l’adresse finale de ce déploiement, sans redirection ni protection.";
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(200, "<h1>Ne plus recevoir ces courriels ?</h1>", OwnAddress::Ours)]
    #[case(200, "<h1>Bienvenue</h1>", OwnAddress::OtherService(200))]
    #[case(308, "", OwnAddress::Redirects)]
    #[case(401, "<title>Login – Vercel</title>", OwnAddress::AsksForLogin)]
    #[case(400, "<h1>Ce lien n’est pas valable</h1>", OwnAddress::OtherDeployment)]
    #[case(404, "Not found", OwnAddress::OtherService(404))]
    fn what_answers(#[case] status: u16, #[case] page: &str, #[case] expected: OwnAddress) {
        assert_eq!(judge(status, page), expected);
        assert_eq!(expected.fault().is_none(), expected == OwnAddress::Ours);
    }
}
