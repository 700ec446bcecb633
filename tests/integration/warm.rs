//! Functions that have served a call and wait for the next one, as the platform keeps them: what a test calls twice
//! is not started twice.

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use sqlx::PgPool;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::world::Function;

/// What goes on working after its answer is not called again as if it were at rest.
const RESTLESS: [&str; 2] = ["drain-queue", "status"];

/// Whoever works holds it.
pub(crate) type Busy = OwnedRwLockReadGuard<()>;

type Variables = HashMap<String, String>;

/// Holds the functions of one world that are at rest.
#[derive(Default)]
pub(crate) struct Idle {
    functions: Mutex<Vec<(String, Variables, Function)>>,
    work: Arc<RwLock<()>>,
}

impl Drop for Idle {
    /// Drops all at once: dropping one waits until it is gone.
    fn drop(&mut self) {
        for (.., function) in self.functions.get_mut().unwrap_or_else(PoisonError::into_inner) {
            function.stop();
        }
    }
}

impl Idle {
    /// Somebody begins to work. Where nobody else does, the second is over for which processes that have ended leased
    /// turns at a provider: nobody waits for it.
    pub(crate) async fn busy(&self, pool: &PgPool) -> Result<Busy> {
        let Ok(alone) = self.work.clone().try_write_owned() else {
            return Ok(self.work.clone().read_owned().await);
        };
        let pass = "do $$ begin if to_regclass('jobs.job_paces') is not null then \
                    update jobs.job_paces set next_at = '-infinity', held_until = null; end if; end $$";
        sqlx::raw_sql(pass).execute(pool).await?;
        Ok(OwnedRwLockWriteGuard::downgrade(alone))
    }

    pub(crate) fn take(&self, name: &str, vars: &Variables) -> Option<Function> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let found = functions.iter().position(|(known, with, _)| known == name && with == vars)?;
        Some(functions.swap_remove(found).2)
    }

    pub(crate) fn hold<'a>(&'a self, name: &str, vars: &Variables, function: Function) -> Warm<'a> {
        Warm { called: Some((name.to_owned(), vars.clone(), function)), idle: self }
    }
}

/// Represents a function that is at rest again when this is dropped.
pub(crate) struct Warm<'a> {
    /// Is `None` only while it is dropped.
    called: Option<(String, Variables, Function)>,
    idle: &'a Idle,
}

impl Deref for Warm<'_> {
    type Target = Function;

    fn deref(&self) -> &Function {
        &self.called.as_ref().expect("not dropped").2
    }
}

impl Drop for Warm<'_> {
    fn drop(&mut self) {
        let Some((name, vars, mut function)) = self.called.take() else { return };
        function.rest();
        if !RESTLESS.contains(&name.as_str()) {
            self.idle.functions.lock().unwrap_or_else(PoisonError::into_inner).push((name, vars, function));
        }
    }
}
