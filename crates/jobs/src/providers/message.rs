//! Says a provider's failure in French.

use super::error::{ErrorKind, ProviderError, ReconnectReason, RefusedReason, Transient, TransientCause};

impl ProviderError {
    /// Returns the message in French for `last_error`, answers and a run's log; it is safe to show
    /// to everybody.
    pub fn user_message(&self) -> String {
        let name = self.provider.name();
        match self.kind {
            ErrorKind::Reconnect(ReconnectReason::TokenRejected) => {
                format!("La connexion à {name} n’est plus valide\u{a0}: elle doit être refaite.")
            }
            ErrorKind::Reconnect(ReconnectReason::AccessRevoked) => {
                format!("L’accès au compte {name} a été retiré\u{a0}: la connexion doit être refaite.")
            }
            ErrorKind::Reconnect(ReconnectReason::RefreshRejected) => {
                format!("La connexion à {name} a expiré\u{a0}: elle doit être refaite.")
            }
            ErrorKind::Refused(RefusedReason::FrozenShop) => {
                format!("La boutique {name} est gelée ou fermée\u{a0}: rien ne peut y être lu.")
            }
            ErrorKind::Refused(RefusedReason::MissingScope) => format!(
                "La connexion à {name} n’a pas l’autorisation de lire ces données\u{a0}: elle doit être refaite \
                 avec toutes les autorisations."
            ),
            // Nobody's mistake that the reader could mend: it says so.
            ErrorKind::Refused(RefusedReason::PermissionLacking) => format!(
                "Il manque à Comptalyze une permission pour lire ce compte {name}\u{a0}: la connexion reste bonne et \
                 n’est pas à refaire."
            ),
            ErrorKind::Refused(RefusedReason::TestMode) => format!(
                "Le compte {name} relié est un compte de test\u{a0}: il n’y a pas de vrais paiements à y lire. Le compte \
                 réel est à connecter à sa place."
            ),
            ErrorKind::Refused(RefusedReason::Unknown) => {
                format!("{name} ne connaît pas ou plus cette boutique ou ce compte.")
            }
            ErrorKind::Refused(RefusedReason::BadRequest | RefusedReason::SearchIgnored) => {
                format!(
                    "{name} a refusé la demande de Comptalyze\u{a0}: une correction du service est nécessaire."
                )
            }
            ErrorKind::Refused(RefusedReason::TooExpensive) => {
                format!("{name} juge la demande trop lourde, même réduite.")
            }
            ErrorKind::Refused(RefusedReason::EndlessPages | RefusedReason::InvalidAnswer(_)) => {
                format!("La réponse de {name} est inexploitable\u{a0}: rien n’en a été compté.")
            }
            ErrorKind::Transient(Transient { cause: TransientCause::RateLimited, .. }) => {
                format!("{name} limite le nombre de demandes\u{a0}: la suite reprendra plus tard.")
            }
            ErrorKind::Transient(_) => {
                format!("{name} ne répond pas correctement pour le moment\u{a0}: un nouvel essai suivra.")
            }
            ErrorKind::OwnCredentials => format!(
                "{name} refuse les identifiants de Comptalyze\u{a0}: ils doivent être corrigés dans la \
                 configuration."
            ),
            ErrorKind::OwnPermission { .. } => format!(
                "La clé {name} de Comptalyze n’a pas toutes les permissions nécessaires\u{a0}: elles doivent être \
                 complétées dans la configuration."
            ),
            ErrorKind::NotApproved => format!(
                "{name} n’autorise pas l’application Comptalyze à lire ces données\u{a0}: l’approbation est à \
                 demander par l’exploitant, les connexions ne sont pas à refaire."
            ),
            ErrorKind::PermanentToken => format!(
                "{name} n’accepte plus le jeton permanent de cette connexion\u{a0}: l’exploitant doit passer aux jetons qui \
                 expirent, la connexion n’est pas à refaire avant."
            ),
            ErrorKind::OutOfTime => {
                format!(
                    "Le temps imparti est écoulé\u{a0}: la lecture de {name} reprendra au prochain passage."
                )
            }
        }
    }
}
