//! HTTP in and out, panics and lifetime: the only module that knows the runtime, and the only one that reads
//! the clock.
//!
//! A request is admitted or answered ([`request`]), its tasks run ([`crate::orchestrator`]) and their outcomes
//! become the answer ([`shape`]). The work is given to the runtime's `wait_until` and awaited there, so that
//! neither SIGTERM nor a client that hangs up cuts it.

mod answer;
mod log;
mod request;
mod shape;
mod status;
mod unsubscribe;
mod webhook;

use std::{
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};

use chrono::{DateTime, Utc};
use http_body_util::{BodyExt, Limited};
use reqwest::header;
use serde_json::json;
use tokio::{sync::oneshot, time::Instant};
use uuid::Uuid;
use vercel_runtime::{AppState, Error, Request, Response, ResponseBody, service_fn};

use self::{
    answer::{Answer, Fields},
    request::{Admission, Incoming, admit},
    unsubscribe::Visit,
    webhook::Signed,
};
use crate::{
    config::{Config, Faults},
    deadline::Deadline,
    email::Mailer,
    http,
    integrations::Clients,
    orchestrator,
    queue::Queue,
    routes::{Kind, Route},
    supabase::Supabase,
    tasks::{Call, Context, Trigger, operator_digest},
};

/// From here to the platform's 300 seconds: the last answers, the log row, the report.
const REQUESTS_AFTER_BUDGET: Duration = Duration::from_secs(20);

/// No route takes a body: enough to see that there is none.
const LARGEST_BODY: usize = 1024;
/// A form of ours or a mail program's.
const LARGEST_FORM: usize = 64 * 1024;
/// An event of the mail service, with a whole list of recipients.
const LARGEST_EVENT: usize = 256 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

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
    let app = Arc::new(App { route, config: Arc::new(Config::from_env()), parts: OnceLock::new() });
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

/// What a process keeps between requests.
struct App {
    route: Route,
    config: Arc<Config>,
    /// Built by the first request that is let in: a refused one must not wait for TLS roots.
    parts: OnceLock<Result<Parts, String>>,
}

/// The clients, built once.
struct Parts {
    http: reqwest::Client,
    supabase: Result<Supabase, Faults>,
    integrations: Result<Arc<Clients>, Faults>,
    mailer: Result<Arc<Mailer>, Faults>,
}

impl App {
    /// The process's clients; an error is a French message.
    fn parts(&self) -> Result<&Parts, String> {
        let parts = self.parts.get_or_init(|| {
            let http = http::client().map_err(|error| {
                tracing::error!(%error, "the HTTP client cannot be built");
                "Le client HTTP n’a pas pu être préparé.".to_owned()
            })?;
            let supabase = match &self.config.supabase {
                Ok(config) => Ok(Supabase::new(http.clone(), config).map_err(|error| error.user_message())?),
                Err(faults) => Err(faults.clone()),
            };
            let integrations = match (&supabase, &self.config.integrations) {
                (Ok(supabase), Ok(config)) => Ok(Arc::new(Clients::new(&http, supabase.clone(), config))),
                (Err(faults), _) | (_, Err(faults)) => Err(faults.clone()),
            };
            let mailer = match (&supabase, &self.config.mail) {
                (Ok(supabase), Ok(config)) => {
                    let prices = self.config.prices.as_ref().ok();
                    let clock = self.config.clock;
                    Ok(Arc::new(Mailer::new(&http, supabase.clone(), config.clone(), prices, clock)))
                }
                (Err(faults), _) | (_, Err(faults)) => Err(faults.clone()),
            };
            Ok(Parts { http, supabase, integrations, mailer })
        });
        parts.as_ref().map_err(Clone::clone)
    }

    /// What this invocation works with, or the answer that says what is missing.
    fn context(&self, now: DateTime<Utc>, begun: Instant) -> Result<Context, Answer> {
        let (_, tuning) = self.config.everybody().map_err(|faults| {
            tracing::error!(%faults, "configuration");
            Answer::error(500, &faults.to_string())
        })?;
        let parts = self.parts().map_err(|message| Answer::error(500, &message))?;
        let supabase = parts.supabase.clone().map_err(|faults| Answer::error(500, &faults.to_string()))?;
        let budget = Duration::from_secs(tuning.budget_seconds);
        Ok(Context {
            config: self.config.clone(),
            tuning,
            http: parts.http.clone(),
            queue: Queue::new(supabase.clone()),
            supabase,
            integrations: parts.integrations.clone(),
            mailer: parts.mailer.clone(),
            now,
            deadline: Deadline::new(begun + budget, begun + budget + REQUESTS_AFTER_BUDGET),
        })
    }
}

/// Answers every request with JSON; a panic or a fault anywhere becomes an opaque 500.
async fn handle(app: Arc<App>, request: Request, state: AppState) -> Result<Response<ResponseBody>, Error> {
    let (now, begun) = (app.config.clock.unwrap_or_else(Utc::now), Instant::now());
    let (method, route) = (request.method().clone(), app.route);
    let answer = see_through(&state, respond(app, request, state.clone(), now, begun)).await;
    log::request(route.path(), method.as_str(), answer.status(), begun.elapsed());
    Ok(answer.into_response())
}

/// Runs the work where neither SIGTERM nor a client that hangs up cuts it; a panic becomes an opaque 500.
async fn see_through(state: &AppState, work: impl Future<Output = Answer> + Send + 'static) -> Answer {
    let (sender, receiver) = oneshot::channel();
    state.wait_until(async move {
        let answer = work.await;
        // Nobody listens any more where the client is gone: the work is done all the same.
        let _ = sender.send(answer);
    });
    receiver.await.unwrap_or_else(|_| Answer::error(500, "Erreur interne ; voir les journaux."))
}

async fn respond(
    app: Arc<App>,
    request: Request,
    state: AppState,
    now: DateTime<Utc>,
    begun: Instant,
) -> Answer {
    let (request, body) = request.into_parts();
    match app.route.kind() {
        Kind::Link => {
            let query = request.uri.query().unwrap_or_default();
            return follow_link(&app, request.method.as_str(), query, body, now, begun).await;
        }
        Kind::Webhook => {
            let header = |name: &str| {
                let value = request.headers.get(name).and_then(|value| value.to_str().ok());
                value.unwrap_or_default().to_owned()
            };
            let signed = Signed {
                id: header("svix-id"),
                timestamp: header("svix-timestamp"),
                signatures: header("svix-signature"),
            };
            return take_webhook(&app, request.method.as_str(), &signed, body, now, begun).await;
        }
        Kind::Page => {
            let header = |name: header::HeaderName| {
                let values = request.headers.get_all(name).iter();
                values.filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join("; ")
            };
            let visit = status::Visit {
                method: request.method.as_str(),
                query: request.uri.query().unwrap_or_default(),
                authorization: request
                    .headers
                    .contains_key(header::AUTHORIZATION)
                    .then(|| header(header::AUTHORIZATION)),
                cookies: header(header::COOKIE),
                accept: header(header::ACCEPT),
            };
            return status::answer(&app, &visit, body, state, now, begun).await;
        }
        Kind::Cron | Kind::Manual | Kind::Drain => {}
    }
    // A broken configuration is said as such, not as a bad parameter.
    let replay_max_days = app.config.tuning.as_ref().map_or(u16::MAX, |tuning| tuning.replay_max_days);
    let header =
        |name: &str| request.headers.get(name).map(|value| value.to_str().unwrap_or("\0").to_owned());
    let authorization = header("authorization");
    let incoming = Incoming {
        method: request.method.as_str(),
        query: request.uri.query().unwrap_or_default(),
        authorization: authorization.as_deref(),
    };
    let admission = admit(app.route, &incoming, app.config.cron_secret.as_ref(), replay_max_days, now);
    if app.config.cron_secret.is_none() {
        tracing::error!("CRON_SECRET is not set: nobody is let in");
    }
    let refused = matches!(admission, Admission::Refuse(_));
    let admission = if refused || is_empty(body).await {
        admission
    } else {
        Admission::Refuse(request::parameters_in_body())
    };
    match admission {
        Admission::Refuse(answer) => {
            // Whoever knows the secret leaves a trace, also of a mistake.
            if answer.status() == 400
                && let Ok(context) = app.context(now, begun)
            {
                log::call(
                    &context,
                    app.route.path(),
                    app.route.log_type(),
                    "error",
                    0,
                    answer.complaint(),
                    &json!({}),
                )
                .await;
            }
            answer
        }
        Admission::Run(call) => match app.context(now, begun) {
            Ok(context) => run(app.route, &context, &call).await,
            Err(answer) => answer,
        },
        Admission::Drain => {
            let chain = header(orchestrator::CHAIN_HEADER).and_then(|id| id.parse().ok());
            let hop = header(orchestrator::HOP_HEADER).and_then(|hop| hop.parse().ok());
            match app.context(now, begun) {
                Ok(context) => {
                    let (chain, hop) = (chain.unwrap_or_else(Uuid::new_v4), hop.unwrap_or(0));
                    drain(context, state, chain, hop).await
                }
                Err(answer) => answer,
            }
        }
    }
}

/// A request without a secret: the link in its query is signed.
async fn follow_link<B>(
    app: &App,
    method: &str,
    query: &str,
    body: B,
    now: DateTime<Utc>,
    begun: Instant,
) -> Answer
where
    B: BodyExt,
    B::Error: Into<Error>,
{
    match method {
        "GET" | "POST" => {}
        "HEAD" | "OPTIONS" => return Answer::empty(204).with_header("allow", app.route.allow()),
        _ => return Answer::error(405, "Méthode non autorisée.").with_header("allow", app.route.allow()),
    }
    match unsubscribe::visit(&app.config, method, query) {
        Visit::Answered(answer) => answer,
        Visit::Stop(user, kind) => {
            // What the form says is not looked at: the link is what counts. Read, so that the connection stays good.
            let _ = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, LARGEST_FORM).collect()).await;
            let Ok(context) = app.context(now, begun) else { return unsubscribe::trouble(&app.config, 500) };
            let arguments = json!({"p_user_id": user, "p_kind": kind.as_str()});
            let written = context.supabase.rpc("mail_unsubscribe", &arguments, &context.deadline).await;
            unsubscribe::stopped(&app.config, kind, written)
        }
    }
}

/// A request without a secret: its body is signed.
async fn take_webhook<B>(
    app: &App,
    method: &str,
    signed: &Signed,
    body: B,
    now: DateTime<Utc>,
    begun: Instant,
) -> Answer
where
    B: BodyExt,
    B::Error: Into<Error>,
{
    match method {
        "POST" => {}
        "HEAD" | "OPTIONS" => return Answer::empty(204).with_header("allow", app.route.allow()),
        _ => return Answer::error(405, "Méthode non autorisée.").with_header("allow", app.route.allow()),
    }
    let body = match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, LARGEST_EVENT).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        _ => return Answer::error(400, "Corps illisible ou trop grand."),
    };
    let event = match webhook::verify(&app.config, signed, &body, now) {
        Ok(event) => event,
        Err(answer) => return answer,
    };
    match app.context(now, begun) {
        Ok(context) => webhook::note(&context, &signed.id, &event).await,
        Err(answer) => answer,
    }
}

/// Whether a request's body says nothing. One that does not end is one that says something.
async fn is_empty<B>(body: B) -> bool
where
    B: BodyExt,
    B::Error: Into<Error>,
{
    let body = Limited::new(body, LARGEST_BODY).collect();
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => request::says_nothing(&body.to_bytes()),
        _ => false,
    }
}

/// Runs a route's tasks, leaves the call's row in `sync_logs`, answers.
async fn run(route: Route, context: &Context, call: &Call) -> Answer {
    let outcomes = orchestrator::run(context, call, route.tasks()).await;
    let answer = shape::answer(route, call, &outcomes);
    let verdict = shape::verdict(&outcomes);
    let metadata = json!({
        "at": call.at, "http_status": answer.status(),
        "answer": log::without_results(answer.body()),
    });
    let written = log::call(
        context,
        route.path(),
        call.log_type(),
        verdict.status,
        verdict.records,
        verdict.error.as_deref(),
        &metadata,
    )
    .await;
    operator_digest::tell(context, call).await;
    if written && call.trigger == Trigger::Cron && !call.dry_run {
        orchestrator::prune(context).await;
    }
    answer
}

/// Answers at once and works afterwards.
async fn drain(context: Context, state: AppState, chain: Uuid, hop: u32) -> Answer {
    let waiting = match context.queue.waiting(&context.deadline).await {
        Ok(waiting) => waiting,
        Err(error) => {
            let status = if error.is_configuration() { 500 } else { 503 };
            return Answer::error(status, &error.user_message());
        }
    };
    state.wait_until(async move {
        let drained = orchestrator::drain_queue(&context, chain, hop).await;
        let (status, error, metadata) = match &drained {
            Ok(drained) => (
                if drained.errors == 0 { "success" } else { "partial" },
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use vercel_runtime::LogContext;

    use super::*;

    fn state() -> AppState {
        AppState::new(LogContext::new(None, None, None))
    }

    #[tokio::test]
    async fn a_panic_becomes_an_opaque_500() {
        let answer = see_through(&state(), async { panic!("secret detail") }).await;
        assert_eq!(answer.status(), 500);
        assert_eq!(answer.body(), r#"{"error":"Erreur interne ; voir les journaux."}"#);
    }

    #[tokio::test]
    async fn work_goes_on_when_the_client_is_gone() {
        static DONE: AtomicBool = AtomicBool::new(false);
        let (begun, has_begun) = oneshot::channel();
        let (go, may_go) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let state = state();
        let client = tokio::spawn(async move {
            see_through(&state, async move {
                begun.send(()).unwrap();
                may_go.await.unwrap();
                DONE.store(true, Ordering::SeqCst);
                end.send(()).unwrap();
                Answer::empty(200)
            })
            .await
        });
        has_begun.await.unwrap();
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        go.send(()).unwrap();
        ended.await.unwrap();
        assert!(DONE.load(Ordering::SeqCst));
    }
}
