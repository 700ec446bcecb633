//! Holds the table of routes: every function of a deployment, how it is called, what it runs and what it may be asked.
//! Pure.
//!
//! It is the only list of routes. Serving, the tests, the benchmark, the demonstration and the doctor iterate over
//! [`Route::ALL`]; whoever adds a route adds a variant here, a file below `api/` and its `[[bin]]`.

use std::fmt;

use crate::schedule::{Task, Via};

listed! {
    /// Represents a function of the deployment.
    #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
    pub enum Route {
        /// It is `GET /api/cron/daily-orchestrator`.
        DailyOrchestrator,
        /// It is `GET /api/cron/monthly-orchestrator`.
        MonthlyOrchestrator,
        /// It is `GET /api/cron/send-reminders`.
        SendReminders,
        /// It is `GET /api/cron/daily-tasks`.
        DailyTasks,
        /// It is `POST /api/cron/drain-queue`.
        DrainQueue,
        /// It is `POST /api/manual/check-thresholds`.
        CheckThresholds,
        /// It is `POST /api/manual/monthly-sync`.
        MonthlySync,
        /// It is `POST /api/manual/sync-integrations`.
        SyncIntegrations,
        /// It is `/api/unsubscribe`.
        Unsubscribe,
        /// It is `/api/confirm`.
        Confirm,
        /// It is `POST /api/webhooks/resend`.
        WebhooksResend,
        /// It is `/api/status`.
        Status,
    }
}

/// Says how a route is called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A scheduler calls it with GET.
    Cron,
    /// An operator calls it with POST, a scheduler with GET and the Bearer; GET alone explains.
    Manual,
    /// We ourselves or an operator call it with POST; it answers before it works.
    Drain,
    /// Whoever holds a signed link calls it.
    Link,
    /// The mail service calls it, and signs what it says.
    Webhook,
    /// An operator calls it, in a browser or with the Bearer.
    Page,
}

impl Kind {
    /// Returns the method of a call that does something or, for a page, shows something.
    pub const fn method(self) -> &'static str {
        match self {
            Self::Cron | Self::Page => "GET",
            Self::Manual | Self::Drain | Self::Link | Self::Webhook => "POST",
        }
    }

    /// Returns every allowed method, as the `Allow` header lists them.
    pub const fn allow(self) -> &'static str {
        match self {
            Self::Cron => "GET",
            Self::Manual | Self::Link | Self::Page => "GET, POST",
            Self::Drain | Self::Webhook => "POST",
        }
    }
}

listed! {
    /// Represents a query parameter.
    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    pub enum Parameter {
        DryRun,
        At,
        UserId,
        Force,
        Month,
        Days,
    }
}

impl Parameter {
    /// Returns how a query names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DryRun => "dry_run",
            Self::At => "at",
            Self::UserId => "user_id",
            Self::Force => "force",
            Self::Month => "month",
            Self::Days => "days",
        }
    }

    /// Returns what it does, for a manual route's instructions.
    pub const fn help(self) -> &'static str {
        match self {
            Self::DryRun => "dry_run=true : essai, rien n’est écrit ni envoyé",
            Self::At => {
                "at=2026-11-22T07:00:00Z : rejouer à cet instant, dans les limites de REPLAY_MAX_DAYS"
            }
            Self::UserId => "user_id=<uuid> : un seul utilisateur",
            Self::Force => "force=true : n’importe quel jour (le dernier mois terminé)",
            Self::Month => "month=AAAA-MM : ce mois-là (implique force)",
            Self::Days => "days=N : remonter d’au moins N jours (30 par défaut)",
        }
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Represents one line of the table.
struct Row {
    path: &'static str,
    binary: &'static str,
    kind: Kind,
    tasks: &'static [Task],
    parameters: &'static [Parameter],
    purpose: &'static str,
}

/// Every route that runs tasks takes these.
const COMMON: &[Parameter] = &[Parameter::DryRun, Parameter::At, Parameter::UserId];

impl Route {
    const fn row(self) -> Row {
        use Parameter::{At, Days, DryRun, Force, Month, UserId};
        match self {
            Self::DailyOrchestrator => Row {
                path: "/api/cron/daily-orchestrator",
                binary: "cron-daily-orchestrator",
                kind: Kind::Cron,
                tasks: &[Task::MarketingDay3, Task::SyncIntegrations],
                parameters: COMMON,
                purpose: "Envoie le courriel J+3 et synchronise Stripe et Shopify, quand ils sont dus.",
            },
            Self::MonthlyOrchestrator => Row {
                path: "/api/cron/monthly-orchestrator",
                binary: "cron-monthly-orchestrator",
                kind: Kind::Cron,
                tasks: &[Task::MonthlyReminders, Task::MonthlySync],
                parameters: COMMON,
                purpose: "Envoie les rappels le 2 et synchronise le mois son dernier jour.",
            },
            Self::SendReminders => Row {
                path: "/api/cron/send-reminders",
                binary: "cron-send-reminders",
                kind: Kind::Cron,
                tasks: &[Task::MonthlyReminders],
                parameters: COMMON,
                purpose: "Envoie les rappels mensuels le 2.",
            },
            Self::DailyTasks => Row {
                path: "/api/cron/daily-tasks",
                binary: "cron-daily-tasks",
                kind: Kind::Cron,
                tasks: &[Task::MarketingDay3],
                parameters: COMMON,
                purpose: "Envoie le courriel J+3.",
            },
            Self::DrainQueue => Row {
                path: "/api/cron/drain-queue",
                binary: "cron-drain-queue",
                kind: Kind::Drain,
                tasks: &[],
                parameters: &[],
                purpose: "Reprend tout ce qui attend dans les files.",
            },
            Self::CheckThresholds => Row {
                path: "/api/manual/check-thresholds",
                binary: "manual-check-thresholds",
                kind: Kind::Manual,
                tasks: &[Task::CheckThresholds],
                parameters: COMMON,
                purpose: "Vérifie les seuils de la micro-entreprise et envoie les alertes.",
            },
            Self::MonthlySync => Row {
                path: "/api/manual/monthly-sync",
                binary: "manual-monthly-sync",
                kind: Kind::Manual,
                tasks: &[Task::MonthlySync],
                parameters: &[DryRun, At, UserId, Force, Month],
                purpose: "Synchronise le chiffre d’affaires d’un mois entier depuis Stripe et Shopify.",
            },
            Self::SyncIntegrations => Row {
                path: "/api/manual/sync-integrations",
                binary: "manual-sync-integrations",
                kind: Kind::Manual,
                tasks: &[Task::SyncIntegrations],
                parameters: &[DryRun, At, UserId, Days],
                purpose: "Synchronise les paiements Stripe et Shopify des derniers jours.",
            },
            Self::Unsubscribe => Row {
                path: "/api/unsubscribe",
                binary: "unsubscribe",
                kind: Kind::Link,
                tasks: &[],
                parameters: &[],
                purpose: "Arrête une sorte de courriels pour qui suit le lien d’un courriel.",
            },
            Self::Confirm => Row {
                path: "/api/confirm",
                binary: "confirm",
                kind: Kind::Link,
                tasks: &[],
                parameters: &[],
                purpose: "Confirme si des saisies et des imports d’un même mois sont les mêmes encaissements.",
            },
            Self::WebhooksResend => Row {
                path: "/api/webhooks/resend",
                binary: "webhooks-resend",
                kind: Kind::Webhook,
                tasks: &[],
                parameters: &[],
                purpose: "Reçoit de Resend ce que sont devenus les courriels.",
            },
            Self::Status => Row {
                path: "/api/status",
                binary: "status",
                kind: Kind::Page,
                tasks: &[],
                parameters: &[],
                purpose: "Montre l’état de tout, rejoue un créneau manqué, reprend une file.",
            },
        }
    }

    /// Returns its path on the deployment.
    pub const fn path(self) -> &'static str {
        self.row().path
    }

    /// Returns the last part of its path.
    pub fn name(self) -> &'static str {
        self.path().rsplit('/').next().unwrap_or_default()
    }

    /// Returns the `[[bin]]` that serves it.
    pub const fn binary(self) -> &'static str {
        self.row().binary
    }

    /// Returns how it is called.
    pub const fn kind(self) -> Kind {
        self.row().kind
    }

    /// Returns what it runs, in the order of its answer.
    pub const fn tasks(self) -> &'static [Task] {
        self.row().tasks
    }

    /// Returns what its query may hold, besides the secret.
    pub const fn parameters(self) -> &'static [Parameter] {
        self.row().parameters
    }

    /// Returns what it is for, in French.
    pub const fn purpose(self) -> &'static str {
        self.row().purpose
    }

    /// Returns through which door a scheduler's `GET` asks it for its tasks.
    pub const fn via(self) -> Via {
        match self.kind() {
            Kind::Cron | Kind::Drain => Via::CronRoute,
            Kind::Manual | Kind::Link | Kind::Webhook | Kind::Page => Via::ManualRoute,
        }
    }

    /// Returns the value of `sync_logs.sync_type` for a call that was refused before it became one.
    pub const fn log_type(self) -> &'static str {
        match self.kind() {
            Kind::Cron => "cron",
            Kind::Manual | Kind::Page => "manual",
            Kind::Drain => "drain",
            Kind::Link | Kind::Webhook => "webhook",
        }
    }

    /// Returns the `Allow` header of a 405.
    pub const fn allow(self) -> &'static str {
        self.kind().allow()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn paths_names_and_binaries_tell_routes_apart() {
        for part in [Route::path, Route::name, Route::binary, Route::purpose] {
            let distinct: BTreeSet<&str> = Route::ALL.into_iter().map(part).collect();
            assert_eq!(distinct.len(), Route::ALL.len(), "{distinct:?}");
        }
        assert_eq!(BTreeSet::from(Route::ALL).len(), Route::ALL.len());
    }

    #[test]
    fn a_binary_is_called_like_its_path() {
        for route in Route::ALL {
            assert_eq!(route.path(), format!("/api/{}", route.binary().replacen('-', "/", slashes(route))));
        }
    }

    /// Returns how many folders lie between `/api/` and the file.
    fn slashes(route: Route) -> usize {
        route.path().matches('/').count() - 2
    }

    #[test]
    fn crons_and_manual_routes_run_tasks_and_nobody_else_does() {
        for route in Route::ALL {
            let runs = matches!(route.kind(), Kind::Cron | Kind::Manual);
            assert_eq!(!route.tasks().is_empty(), runs, "{route:?}");
            assert_eq!(!route.parameters().is_empty(), runs, "{route:?}");
            assert!(route.allow().contains(route.kind().method()), "{route:?}");
        }
    }

    #[test]
    fn some_cron_or_operator_asks_for_every_task() {
        for task in Task::ALL {
            assert!(Route::ALL.into_iter().any(|route| route.tasks().contains(&task)), "{task}");
        }
    }
}
