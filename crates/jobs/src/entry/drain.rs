//! The handler of `drain-queue`: it answers at once and works on the queue afterwards, as one hop of a chain.

use reqwest::header::HeaderMap;
use serde_json::json;
use uuid::Uuid;
use vercel_runtime::AppState;

use super::{
    answer::{Answer, Fields},
    log,
};
use crate::{chain, routes::Route, tasks::Context};

/// Tells which hop of which chain a request is; without headers it is the first hop of a new chain.
pub(super) struct Hop {
    chain: Uuid,
    hop: u32,
}

impl Hop {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        Self {
            chain: header(chain::ID_HEADER).and_then(|id| id.parse().ok()).unwrap_or_else(Uuid::new_v4),
            hop: header(chain::HOP_HEADER).and_then(|hop| hop.parse().ok()).unwrap_or(0),
        }
    }
}

/// Answers at once; the work goes on afterwards.
pub(super) async fn answer(context: Context, state: AppState, hop: Hop) -> Answer {
    let Hop { chain, hop } = hop;
    let waiting = match context.queue.waiting(&context.deadline).await {
        Ok(waiting) => waiting,
        Err(error) => {
            let status = if error.is_configuration() { 500 } else { 503 };
            return Answer::error(status, &error.user_message());
        }
    };
    state.wait_until(async move {
        let drained = chain::drain_queue(&context, chain, hop).await;
        let (status, error, metadata) = match &drained {
            Ok(drained) => (
                if drained.errors == 0 && drained.is_done { "success" } else { "partial" },
                drained.message.clone(),
                json!({"chain": chain, "hop": hop, "settled": drained.settled}),
            ),
            Err(error) => {
                tracing::error!(%error, "drain failed");
                ("error", Some(error.user_message()), json!({"chain": chain, "hop": hop}))
            }
        };
        let path = Route::DrainQueue.path();
        log::call(&context, path, "drain", status, 0, error.as_deref(), &metadata).await;
    });
    let fields = Fields::new().with("message", "Reprise de la file lancée").with("waiting", &waiting);
    Answer::json(202, &fields.with("chain", &chain))
}
