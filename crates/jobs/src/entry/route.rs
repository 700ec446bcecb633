//! The functions of a deployment: one table that says how each is called and what it may be asked.

use std::fmt;

use crate::schedule::{ROUTES, Task, Via};

/// A function.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Route {
    /// `GET /api/cron/daily-orchestrator`
    DailyOrchestrator,
    /// `GET /api/cron/monthly-orchestrator`
    MonthlyOrchestrator,
    /// `GET /api/cron/send-reminders`
    SendReminders,
    /// `GET /api/cron/daily-tasks`
    DailyTasks,
    /// `POST /api/cron/drain-queue`
    DrainQueue,
    /// `POST /api/manual/check-thresholds`
    CheckThresholds,
    /// `POST /api/manual/monthly-sync`
    MonthlySync,
    /// `POST /api/manual/sync-integrations`
    SyncIntegrations,
    /// `/api/unsubscribe`
    Unsubscribe,
    /// `POST /api/webhooks/resend`
    WebhooksResend,
    /// `/api/status`
    Status,
}

/// How a route is called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// By a scheduler, with GET.
    Cron,
    /// By an operator, with POST; by a scheduler, with GET and the Bearer; GET alone explains.
    Manual,
    /// By ourselves or an operator, with POST; answers before it works.
    Drain,
    /// By whoever holds a signed link.
    Link,
    /// By the mail service, signed.
    Webhook,
    /// By an operator, in a browser or with the Bearer.
    Page,
}

/// A query parameter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Parameter {
    DryRun,
    At,
    UserId,
    Force,
    Month,
    Days,
}

impl Parameter {
    pub(super) const ALL: [Self; 6] =
        [Self::DryRun, Self::At, Self::UserId, Self::Force, Self::Month, Self::Days];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::DryRun => "dry_run",
            Self::At => "at",
            Self::UserId => "user_id",
            Self::Force => "force",
            Self::Month => "month",
            Self::Days => "days",
        }
    }

    /// What it does, for the instructions.
    pub(super) const fn help(self) -> &'static str {
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

impl Route {
    /// Every function.
    pub const ALL: [Self; 11] = [
        Self::DailyOrchestrator,
        Self::MonthlyOrchestrator,
        Self::SendReminders,
        Self::DailyTasks,
        Self::DrainQueue,
        Self::CheckThresholds,
        Self::MonthlySync,
        Self::SyncIntegrations,
        Self::Unsubscribe,
        Self::WebhooksResend,
        Self::Status,
    ];

    /// Its path on the deployment.
    pub const fn path(self) -> &'static str {
        match self {
            Self::DailyOrchestrator => "/api/cron/daily-orchestrator",
            Self::MonthlyOrchestrator => "/api/cron/monthly-orchestrator",
            Self::SendReminders => "/api/cron/send-reminders",
            Self::DailyTasks => "/api/cron/daily-tasks",
            Self::DrainQueue => "/api/cron/drain-queue",
            Self::CheckThresholds => "/api/manual/check-thresholds",
            Self::MonthlySync => "/api/manual/monthly-sync",
            Self::SyncIntegrations => "/api/manual/sync-integrations",
            Self::Unsubscribe => crate::email::links::PATH,
            Self::WebhooksResend => "/api/webhooks/resend",
            Self::Status => "/api/status",
        }
    }

    pub(super) const fn kind(self) -> Kind {
        match self {
            Self::DailyOrchestrator | Self::MonthlyOrchestrator | Self::SendReminders | Self::DailyTasks => {
                Kind::Cron
            }
            Self::CheckThresholds | Self::MonthlySync | Self::SyncIntegrations => Kind::Manual,
            Self::DrainQueue => Kind::Drain,
            Self::Unsubscribe => Kind::Link,
            Self::WebhooksResend => Kind::Webhook,
            Self::Status => Kind::Page,
        }
    }

    pub(super) const fn via(self) -> Via {
        match self.kind() {
            Kind::Cron | Kind::Drain => Via::CronRoute,
            Kind::Manual | Kind::Link | Kind::Webhook | Kind::Page => Via::ManualRoute,
        }
    }

    /// As in `sync_logs.sync_type`, for a call that was refused before it became one.
    pub(super) const fn log_type(self) -> &'static str {
        match self.kind() {
            Kind::Cron => "cron",
            Kind::Manual | Kind::Page => "manual",
            Kind::Drain => "drain",
            Kind::Link | Kind::Webhook => "webhook",
        }
    }

    /// The `Allow` header of a 405.
    pub(super) const fn allow(self) -> &'static str {
        match self.kind() {
            Kind::Cron => "GET",
            Kind::Manual | Kind::Link | Kind::Page => "GET, POST",
            Kind::Drain | Kind::Webhook => "POST",
        }
    }

    /// What it runs, in the order of its answer.
    pub(super) fn tasks(self) -> &'static [Task] {
        ROUTES.iter().find(|(path, ..)| *path == self.path()).map_or(&[], |(.., tasks)| tasks)
    }

    pub(super) const fn parameters(self) -> &'static [Parameter] {
        use Parameter::{At, Days, DryRun, Force, Month, UserId};
        match self {
            Self::MonthlySync => &[DryRun, At, UserId, Force, Month],
            Self::SyncIntegrations => &[DryRun, At, UserId, Days],
            Self::DrainQueue | Self::Unsubscribe | Self::WebhooksResend | Self::Status => &[],
            _ => &[DryRun, At, UserId],
        }
    }

    /// What a manual route is for, in its instructions.
    pub(super) const fn purpose(self) -> &'static str {
        match self {
            Self::CheckThresholds => "Vérifie les seuils de la micro-entreprise et envoie les alertes.",
            Self::MonthlySync => {
                "Synchronise le chiffre d’affaires d’un mois entier depuis Stripe et Shopify."
            }
            Self::SyncIntegrations => "Synchronise les paiements Stripe et Shopify des derniers jours.",
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_of_the_schedule_is_served_under_its_path() {
        for (path, via, tasks) in ROUTES {
            let route = Route::ALL.into_iter().find(|route| route.path() == path).unwrap();
            assert_eq!((route.via(), route.tasks()), (via, tasks), "{path}");
        }
        let without: Vec<_> = Route::ALL.into_iter().filter(|route| route.tasks().is_empty()).collect();
        assert_eq!(without, [Route::DrainQueue, Route::Unsubscribe, Route::WebhooksResend, Route::Status]);
    }
}
