//! The page of one user: found by id or address, looked at, and what may be done for them.

mod action;
mod page;
mod said;
mod wanted;

use chrono::{DateTime, Utc};
use uuid::Uuid;
use vercel_runtime::AppState;

pub(super) use self::wanted::Wanted;
use super::{
    page_request::{PageRequest, page_deadline},
    query::Query,
    refused::NOBODY,
};
use crate::{
    entry::{answer::Answer, app::App},
    operations::user::{
        facts, law,
        receipts::{self, LINES, Period},
        view::UserView,
    },
    retention,
    supabase::{Supabase, SupabaseError},
    tasks::Context,
};

/// Finds the account of an id or a whole address: a browser is sent to its page.
pub(super) async fn find(app: &App, request: &PageRequest<'_>, who: &str) -> Answer {
    let supabase = match database(app, request) {
        Ok(supabase) => supabase,
        Err(answer) => return answer,
    };
    match facts::find(supabase, who, &page_deadline()).await {
        Ok(Some(user)) => Answer::see_other(page::page_of(user)),
        Ok(None) => request.refuse(404, NOBODY),
        Err(error) => failed(request, &error),
    }
}

/// Shows one user: the page, its JSON, or a file of receipts.
pub(super) async fn show(
    app: &App,
    request: &PageRequest<'_>,
    user: Uuid,
    query: &Query,
    token: Option<&str>,
    now: DateTime<Utc>,
) -> Answer {
    let supabase = match database(app, request) {
        Ok(supabase) => supabase,
        Err(answer) => return answer,
    };
    if let Some((period, part)) = query.receipts {
        return file(supabase, request, user, period, part).await;
    }
    let deadline = page_deadline();
    let prices = app.config.prices.as_ref().ok();
    let (facts, law) = tokio::join!(
        facts::ask(supabase, user, query.opened, prices, retention::KEPT, now, &deadline),
        law::look(supabase, user, now, &deadline)
    );
    match facts {
        Ok(Some(facts)) => {
            let view = UserView::new(now, facts, law.ok(), query.opened.page);
            if request.wants_json() {
                return Answer::object(200, &view);
            }
            page::user(&view, query.opened, token, query.notice)
        }
        Ok(None) => request.refuse(404, NOBODY),
        Err(error) => failed(request, &error),
    }
}

/// Does what is wanted for a user, or says what it would do: a browser then confirms it with the same form.
pub(super) async fn act(
    context: Context,
    state: &AppState,
    request: &PageRequest<'_>,
    wanted: &Wanted,
    token: Option<&str>,
) -> Answer {
    let (is_browser, is_confirmed) = (request.authorization.is_none(), wanted.is_confirmed);
    match action::act(context, state, wanted).await {
        Ok(done) if is_browser && is_confirmed => {
            Answer::see_other(format!("{}&fait={}", page::page_of(wanted.user), done.notice))
        }
        Ok(done) if is_browser => page::look(wanted, &done, token),
        Ok(done) => Answer::json(if is_confirmed { 202 } else { 200 }, &done.fields),
        Err(refused) => request.refuse(refused.status, &refused.message),
    }
}

async fn file(
    supabase: &Supabase,
    request: &PageRequest<'_>,
    user: Uuid,
    period: Period,
    part: u32,
) -> Answer {
    match receipts::ask(supabase, user, period, part, &page_deadline()).await {
        Ok(receipts) => {
            let parts = receipts.total.div_ceil(LINES.into());
            let suffix = if parts > 1 { format!("-{}-sur-{parts}", part + 1) } else { String::new() };
            Answer::file("text/csv; charset=utf-8", &format!("recettes-{period}{suffix}.csv"), receipts.csv())
        }
        Err(error) => failed(request, &error),
    }
}

/// Returns the database, or the answer that says what keeps us from it.
fn database<'a>(app: &'a App, request: &PageRequest<'_>) -> Result<&'a Supabase, Answer> {
    let parts = app.parts().map_err(|message| request.refuse(500, &message))?;
    parts.supabase.as_ref().map_err(|faults| request.refuse(500, &faults.to_string()))
}

fn failed(request: &PageRequest<'_>, error: &SupabaseError) -> Answer {
    request.refuse(if error.is_configuration() { 500 } else { 503 }, &error.user_message())
}
