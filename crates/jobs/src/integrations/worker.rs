//! The worker of the lanes `stripe`, `shopify` and `months`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::json;

use super::{
    Clients, Integration,
    error::ItemError,
    read::{self, End, Reader},
    settle::{Settlement, State},
};
use crate::{
    deadline::Deadline,
    failure::Failure,
    providers::Provider,
    queue::{Claimed, Outcome, Permit, WorkItem, Worker},
    schedule::{self, Month, Window},
    supabase::SupabaseError,
};

/// Reads and settles sync items.
pub struct SyncWorker {
    clients: Arc<Clients>,
    /// Is when this invocation began, which token expiries are compared with.
    now: DateTime<Utc>,
}

impl SyncWorker {
    /// `now` is the real time, also in a replay.
    pub fn new(clients: Arc<Clients>, now: DateTime<Utc>) -> Self {
        Self { clients, now }
    }
}

/// Represents an item and the integrations behind it.
pub struct SyncJob {
    item: Claimed,
    integrations: Vec<Integration>,
}

/// Holds what an item asks for, in instants.
struct Plan {
    window: Box<dyn Fn(&Integration) -> Window + Send + Sync>,
    month: Option<Month>,
    count_month: bool,
}

impl Plan {
    fn of(item: &Claimed) -> Option<Self> {
        let as_of = item.as_of;
        Some(match &item.work {
            WorkItem::SyncIntegration { days } => {
                let days = match days {
                    Some(days) => Some(days.to_string().parse::<schedule::Days>().ok()?),
                    None => None,
                };
                Self {
                    window: Box::new(move |integration| {
                        let window = Window::for_sync(as_of, days, integration.last_success_to);
                        match (days, integration.last_success_to, integration.books_from) {
                            (_, None, Some(books_from)) if integration.provider == Provider::Stripe => {
                                window.reaching(Window::sends_begin(books_from))
                            }
                            (_, None, Some(books_from)) => window.reaching(books_from),
                            (None, ..) => window.deepened_daily(integration.deep_read_to),
                            (Some(_), ..) => window,
                        }
                    }),
                    month: None,
                    count_month: false,
                }
            }
            WorkItem::SyncMonth { month, count_month, .. } => {
                let month: Month = month.parse().ok()?;
                // An earlier replay must not turn the window around.
                let window = Window { from: month.start(), to: month.end().min(as_of).max(month.start()) };
                Self {
                    window: Box::new(move |integration| {
                        let sent_from = Window::sends_begin(window.from);
                        let is_read = integration.covered_from.is_some_and(|from| from <= sent_from);
                        if integration.provider == Provider::Stripe && !is_read {
                            window.reaching(sent_from)
                        } else {
                            window
                        }
                    }),
                    month: Some(month),
                    count_month: *count_month,
                }
            }
        })
    }
}

impl Worker for SyncWorker {
    type Job = SyncJob;

    async fn prepare(&self, items: Vec<Claimed>, deadline: Deadline) -> Result<Vec<SyncJob>, SupabaseError> {
        let ids: Vec<i64> = items.iter().map(|item| item.item_id).collect();
        let rows: Vec<Integration> =
            self.clients.supabase.rpc("integration_context", &json!({"p_items": ids}), &deadline).await?;
        let mut by_item: HashMap<i64, Vec<Integration>> = HashMap::new();
        for row in rows {
            by_item.entry(row.item_id).or_default().push(row);
        }
        let jobs = items.into_iter().map(|mut item| {
            item.as_of = self.reads_until(&item);
            let integrations = by_item.remove(&item.item_id).unwrap_or_default();
            SyncJob { item, integrations }
        });
        Ok(jobs.collect())
    }

    fn item(job: &SyncJob) -> &Claimed {
        &job.item
    }

    async fn work(&self, job: SyncJob, permit: &mut Permit, deadline: Deadline) -> Outcome {
        let SyncJob { item, integrations } = job;
        match self.sync(&item, integrations, permit, deadline).await {
            Ok(failed) => Outcome::Settled { failed },
            Err(outcome) => outcome,
        }
    }
}

impl SyncWorker {
    /// Returns up to when an item is read: as its run says. A month that waited is read up to now; where a part of it is
    /// stored, as far as that part's reading was to go.
    fn reads_until(&self, item: &Claimed) -> DateTime<Utc> {
        if item.is_replay || !matches!(item.work, WorkItem::SyncMonth { .. }) {
            return item.as_of;
        }
        let resumed = read::stored_position(item.progress.cursor.as_ref());
        item.as_of.max(resumed.map_or(self.now, |position| position.window_end()))
    }

    /// Says whether the item was settled as an error.
    async fn sync(
        &self,
        item: &Claimed,
        integrations: Vec<Integration>,
        permit: &mut Permit,
        deadline: Deadline,
    ) -> Result<bool, Outcome> {
        let Some(plan) = Plan::of(item) else {
            let failure = Failure {
                code: "bad_item".into(),
                message: "L’élément de la file est illisible.".into(),
            };
            return Err(Outcome::GiveBack { delay: Duration::ZERO, failure: Some(failure), attempt: true });
        };
        let mut reader = Reader {
            clients: &self.clients,
            settlement: Settlement::new(
                &self.clients.supabase,
                item,
                plan.month.map(Month::first_day),
                self.now,
            ),
            parts: Vec::with_capacity(integrations.len()),
            permit,
            read: 0,
            now: self.now,
            deadline,
            is_last_attempt: item.is_last_attempt(),
        };
        let mut resume_from = read::stored_position(item.progress.cursor.as_ref());
        for mut integration in integrations {
            let resumed = resume_from.take_if(|position| position.provider() == integration.provider);
            let window = (plan.window)(&integration);
            match reader.read(&mut integration, window, plan.count_month, resumed).await {
                Ok(End::Read) => {}
                Ok(End::Lost) => return Ok(false),
                Ok(End::Yielded(progress)) => return Err(Outcome::Yielded(progress)),
                Err(trouble) => {
                    // Nothing of a list that was not read to its end is settled: refunds may be missing.
                    let failure = trouble.into_outcome(item)?;
                    if let Some(part) = reader.parts.last_mut() {
                        part.clear();
                        part.error = Some(failure);
                    }
                }
            }
        }
        let Reader { mut settlement, mut parts, permit, .. } = reader;
        permit.release();
        let mut state = settlement.finish(&mut parts, &deadline).await;
        if let Err(error) = state {
            // Given back, until the last attempt: then the refusal itself is settled, for the user and the log.
            let failure = ItemError::from(error).into_outcome(item)?;
            for part in &mut parts {
                part.error = Some(failure.clone());
            }
            state = settlement.finish(&mut parts, &deadline).await;
        }
        match state {
            Ok(State::Settled { failed }) => Ok(failed),
            Ok(State::Stored | State::Lost) => {
                tracing::warn!(item_id = item.item_id, "the item was taken over; nothing was written");
                Ok(false)
            }
            Err(error) => {
                let failure = Failure { code: "database".into(), message: error.user_message() };
                Err(Outcome::GiveBack { delay: Duration::ZERO, failure: Some(failure), attempt: true })
            }
        }
    }
}
