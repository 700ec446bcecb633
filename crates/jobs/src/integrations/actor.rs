//! Says who has to act on a failure, by its code: the one place where that is decided.

/// Tells who has to act.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Actor {
    /// One user has to act; `reconnects` says that connecting again mends it.
    User { reconnects: bool },
    /// Whoever runs the deployment has to act.
    Operator,
    /// Nobody has to act: it passes by itself.
    Nobody,
}

const RECONNECTS: Actor = Actor::User { reconnects: true };
const ELSEWHERE: Actor = Actor::User { reconnects: false };

/// A stored token opens nothing: the code alone does not tell whose fault it is.
pub const TOKEN_UNREADABLE: &str = "token_unreadable";

/// Lists every code that an item or an integration can fail with.
const ACTORS: [(&str, Actor); 31] = [
    ("token_rejected", RECONNECTS),
    ("access_revoked", RECONNECTS),
    ("refresh_rejected", RECONNECTS),
    ("token_expired", RECONNECTS),
    ("not_connected", RECONNECTS),
    ("account_mismatch", RECONNECTS),
    ("bad_shop_domain", RECONNECTS),
    ("unknown_account", RECONNECTS),
    ("missing_scope", RECONNECTS),
    ("test_mode", RECONNECTS),
    ("frozen_shop", ELSEWHERE),
    // Asking both users of one shop to connect again would never end.
    ("connected_elsewhere", ELSEWHERE),
    ("own_credentials", Actor::Operator),
    ("own_permission", Actor::Operator),
    ("app_not_approved", Actor::Operator),
    ("permanent_token", Actor::Operator),
    ("permission_lacking", Actor::Operator),
    // One user's row, or ENCRYPTION_KEY has changed for all of them.
    (TOKEN_UNREADABLE, Actor::Operator),
    ("bad_request", Actor::Operator),
    ("search_ignored", Actor::Operator),
    ("too_expensive", Actor::Operator),
    ("bad_item", Actor::Operator),
    ("internal", Actor::Operator),
    ("endless_pages", Actor::Nobody),
    ("invalid_answer", Actor::Nobody),
    ("network", Actor::Nobody),
    ("rate_limited", Actor::Nobody),
    ("locked", Actor::Nobody),
    ("server_error", Actor::Nobody),
    ("out_of_time", Actor::Nobody),
    ("database", Actor::Nobody),
];

/// Returns who has to act; what nobody knows is the operator's to look at.
fn who_acts(code: &str) -> Actor {
    ACTORS.iter().find(|(known, _)| *known == code).map_or(Actor::Operator, |(_, actor)| *actor)
}

/// Says in French who has to act on a failure of an integration, and how.
pub fn remedy(code: &str) -> &'static str {
    match who_acts(code) {
        Actor::User { reconnects: true } => "L’utilisateur refait la connexion dans l’application.",
        Actor::User { reconnects: false } => {
            "L’utilisateur voit avec le fournisseur ; refaire la connexion n’y change rien."
        }
        Actor::Operator => "C’est à l’exploitant d’agir : voir ce message dans le guide d’exploitation.",
        Actor::Nobody => "Rien à faire : cela passe de soi-même, la synchronisation suivante relit tout.",
    }
}

/// Returns whether this failure of an integration is one user's to mend: nobody who runs the deployment can.
pub fn is_the_users_to_mend(code: &str) -> bool {
    matches!(who_acts(code), Actor::User { .. })
}

/// Returns whether a provider has failed for one account, which passes by itself and is nobody's to mend.
pub fn is_a_providers_own(code: &str) -> bool {
    who_acts(code) == Actor::Nobody && code != "database"
}

/// Returns the codes that only one user can mend.
pub fn users_codes() -> Vec<&'static str> {
    codes(|actor| matches!(actor, Actor::User { .. }))
}

/// Returns the codes whose user is asked by mail to connect again.
pub(super) fn mended_by_reconnecting() -> Vec<&'static str> {
    codes(|actor| actor == RECONNECTS)
}

fn codes(wanted: impl Fn(Actor) -> bool) -> Vec<&'static str> {
    ACTORS.iter().filter(|(_, actor)| wanted(*actor)).map(|(code, _)| *code).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::providers::tests::all;

    #[test]
    fn every_refusal_says_who_acts_once() {
        let known: BTreeSet<_> = ACTORS.iter().map(|(code, _)| *code).collect();
        assert_eq!(known.len(), ACTORS.len());
        for error in all() {
            assert!(known.contains(error.code()), "{error}");
        }
    }

    #[test]
    fn no_user_is_mailed_for_what_is_ours_or_passes() {
        let mailed = mended_by_reconnecting();
        for code in [
            "own_credentials",
            "own_permission",
            "app_not_approved",
            "permanent_token",
            "permission_lacking",
            "rate_limited",
        ] {
            assert!(!mailed.contains(&code) && !is_the_users_to_mend(code), "{code}");
        }
        for code in ["frozen_shop", "connected_elsewhere"] {
            assert!(!mailed.contains(&code) && is_the_users_to_mend(code), "{code}");
        }
        assert_eq!(who_acts("of a later version"), Actor::Operator);
    }

    #[test]
    fn samples_of_mails_have_reasons_that_are_mailed() {
        let plain = |text: &str| text.replace('\u{a0}', " ");
        let mailed: Vec<_> = all()
            .iter()
            .filter(|error| mended_by_reconnecting().contains(&error.code()))
            .map(|error| plain(&error.user_message()))
            .collect();
        for (name, facts) in crate::email::samples::samples() {
            if let crate::email::Facts::IntegrationTrouble { reason, .. } = facts {
                let of_shopify = plain(&reason).replace("Stripe", "Shopify");
                assert!(mailed.contains(&of_shopify), "{name}: {reason}");
            }
        }
    }

    #[test]
    fn what_proves_an_outage_is_the_operators() {
        for code in crate::providers::OUTAGE.codes {
            assert_eq!(who_acts(code), Actor::Operator, "{code}");
        }
    }

    /// What passes by itself, and only that, is nobody's.
    #[test]
    fn what_is_repeated_is_nobodys() {
        use crate::retry::{RetryDecision, Retryable};
        for error in all().iter().filter(|error| error.retry() != RetryDecision::No) {
            assert_eq!(who_acts(error.code()), Actor::Nobody, "{error}");
        }
    }
}
