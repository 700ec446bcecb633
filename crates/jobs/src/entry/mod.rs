//! HTTP in and out, panics and lifetime: the only module that knows the runtime, and the only one that reads
//! the clock.
//!
//! There is one handler for each kind of route: `run` (cron and manual), `drain`, `unsubscribe` and `confirm` (links),
//! `webhook` and `status` (the page). `request` and `admission` let the callers of the first two in. All work is given to
//! the runtime's `wait_until` and awaited there (`lifetime`), so that neither SIGTERM nor a client that hangs up cuts it.

mod admission;
mod answer;
mod app;
mod body;
mod confirm;
mod drain;
mod form;
mod lifetime;
mod link_page;
mod log;
mod request;
mod run;
mod shape;
mod status;
mod unsubscribe;
mod webhook;

use std::{process::ExitCode, sync::Arc};

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use vercel_runtime::{AppState, Error, Request, Response, ResponseBody, service_fn};

use self::{
    admission::{Admitted, let_in},
    answer::Answer,
    app::App,
    drain::Hop,
    lifetime::run_to_completion,
    request::Incoming,
    status::PageRequest,
    webhook::Signed,
};
use crate::routes::{Kind, Route};

/// Serves one function until the platform stops it.
pub fn serve(route: Route) -> ExitCode {
    log::start();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the runtime cannot start");
            return ExitCode::FAILURE;
        }
    };
    let app = Arc::new(App::new(route));
    let served =
        runtime.block_on(vercel_runtime::run(service_fn(move |request: Request, state: AppState| {
            handle(app.clone(), request, state)
        })));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the function stopped");
            ExitCode::FAILURE
        }
    }
}

/// Answers every request with JSON; a panic or a fault anywhere becomes an opaque 500.
async fn handle(app: Arc<App>, request: Request, state: AppState) -> Result<Response<ResponseBody>, Error> {
    let (now, begun) = (app.now(), Instant::now());
    let (method, route) = (request.method().clone(), app.route);
    let answer = run_to_completion(&state, respond(app, request, state.clone(), now, begun)).await;
    log::request(route.path(), method.as_str(), answer.status(), begun.elapsed());
    Ok(answer.into_response())
}

/// Hands a request to the handler of its route's kind.
async fn respond(
    app: Arc<App>,
    request: Request,
    state: AppState,
    now: DateTime<Utc>,
    begun: Instant,
) -> Answer {
    let (request, body) = request.into_parts();
    let (method, headers) = (request.method.as_str(), &request.headers);
    let query = request.uri.query().unwrap_or_default();
    match app.route.kind() {
        Kind::Cron | Kind::Manual | Kind::Drain => {
            let authorization = headers.get("authorization").map(|value| value.to_str().unwrap_or("\0"));
            let incoming = Incoming { method, query, authorization };
            let admitted = match let_in(&app, &incoming, body, now, begun).await {
                Ok(admitted) => admitted,
                Err(refusal) => return refusal,
            };
            match (app.context(now, begun), admitted) {
                (Ok(context), Admitted::Run(call)) => run::answer(app.route, &context, &call).await,
                (Ok(context), Admitted::Drain) => drain::answer(context, state, Hop::of(headers)).await,
                (Err(answer), _) => answer,
            }
        }
        Kind::Link => match app.route {
            Route::Confirm => confirm::answer(&app, method, query, body, now, begun).await,
            _ => unsubscribe::answer(&app, method, query, body, now, begun).await,
        },
        Kind::Webhook => webhook::answer(&app, method, &Signed::of(headers), body, now, begun).await,
        Kind::Page => {
            let request = PageRequest::new(method, query, headers);
            status::answer(&app, &request, body, state, now, begun).await
        }
    }
}
