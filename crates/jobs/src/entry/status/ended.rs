//! Sessions that were ended: the database keeps one number, how often somebody has signed out. A session carries the
//! number of its beginning; under another one it is worth nothing, whoever kept its cookie.

use serde_json::json;

use super::session::{self, Session};
use crate::{
    deadline::Deadline,
    entry::answer::Answer,
    routes::Route,
    supabase::{Supabase, SupabaseError},
};

/// Says that nobody is let in because the database cannot be asked.
pub(super) const NOT_VERIFIED: &str = "La session ne peut pas être vérifiée, car la base de données ne répond pas comme attendu. Demandez cette page avec l’en-tête Authorization : elle dit ce qui manque.";

/// Says that a session may still be used by whoever has a copy of its cookie.
const NOT_ENDED: &str = "La déconnexion n’a pas pu être notée, car la base de données ne répond pas comme attendu. Ce navigateur a oublié la session, mais une copie de son cookie vaut encore 30 minutes au plus ; changer CRON_SECRET y met fin tout de suite.";

/// Tells whether somebody has signed out since the session began.
pub(super) async fn is_ended(
    supabase: &Supabase,
    session: &Session,
    deadline: &Deadline,
) -> Result<bool, SupabaseError> {
    Ok(epoch(supabase, deadline).await? != session.epoch)
}

/// Ends this session and all others: they are all the operator's. Without a session (the Bearer) all are ended, too.
pub(super) async fn sign_out(
    supabase: Option<&Supabase>,
    session: Option<&Session>,
    deadline: &Deadline,
) -> Answer {
    let ended = match supabase {
        Some(supabase) => end_all(supabase, session, deadline).await.is_ok(),
        None => false,
    };
    let answer =
        if ended { Answer::see_other(Route::Status.path()) } else { super::page::message(503, NOT_ENDED) };
    answer.with_header("set-cookie", session::no_cookie())
}

async fn end_all(
    supabase: &Supabase,
    session: Option<&Session>,
    deadline: &Deadline,
) -> Result<(), SupabaseError> {
    let epoch = match session {
        Some(session) => session.epoch,
        None => epoch(supabase, deadline).await?,
    };
    supabase.rpc("jobs_sign_out", &json!({"p_epoch": epoch}), deadline).await
}

async fn epoch(supabase: &Supabase, deadline: &Deadline) -> Result<u64, SupabaseError> {
    supabase.rpc("jobs_session_epoch", &json!({}), deadline).await
}
