//! Writing down what was read, under the item's lease.

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{
    Integration,
    actor::{mended_by_reconnecting, users_codes},
    columns,
};
use crate::{
    deadline::Deadline,
    failure::Failure,
    providers::{Movement, OrderPayment, Provider, stripe},
    queue::{Claimed, Progress},
    schedule::{RECAP_WAITS_UNTIL, Window},
    supabase::{PreparedCall, Supabase, SupabaseError},
    urssaf::{RowRate, row_rates},
};

/// Represents one integration's share of an item, as `integration_settle` takes it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Part {
    integration_id: Uuid,
    pub(super) provider: Provider,
    /// Is `None` where the account was never proven, so that nothing can be stored.
    pub(super) account: Option<String>,
    pub(super) window: Window,
    #[serde(serialize_with = "columns::serialize")]
    pub(super) movements: Vec<Movement>,
    /// Holds what orders say was paid, to be compared with the movements.
    pub(super) order_payments: Vec<OrderPayment>,
    pub(super) error: Option<Failure>,
    pub(super) notes: Map<String, Value>,
    pub(super) count_month: bool,
    /// Maps the provider's names of kinds to ours, so that rows that were kept as unknown are
    /// learned.
    kinds: Map<String, Value>,
    /// Lists the rates by which the rows of `ca_records` are estimated.
    rates: Vec<RowRate>,
    /// Says whether the window reaches far back for rows that show late.
    deep: bool,
    /// Counts the rows of the list of movements; `None` where a part of them was read by a version that did not count.
    pub(super) listed: Option<u64>,
}

impl Part {
    pub(super) fn new(integration: &Integration, window: Window, count_month: bool) -> Self {
        Self {
            integration_id: integration.id,
            provider: integration.provider,
            account: integration.proven_account.clone(),
            window,
            movements: Vec::new(),
            order_payments: Vec::new(),
            error: None,
            notes: Map::new(),
            count_month,
            kinds: match integration.provider {
                Provider::Stripe => stripe::kinds(),
                Provider::Shopify => Map::new(),
            },
            rates: row_rates(),
            deep: window.is_deep(),
            listed: Some(0),
        }
    }

    /// Counts what is kept in memory.
    pub(super) fn held(&self) -> usize {
        self.movements.len() + self.order_payments.len()
    }

    /// Forgets what was read, because it is stored, or because it is not all.
    pub(super) fn clear(&mut self) {
        (self.movements, self.order_payments) = (Vec::new(), Vec::new());
    }

    /// Goes on with the window of an earlier reading.
    pub(super) fn resume(&mut self, window: Window, notes: Map<String, Value>, listed: Option<u64>) {
        (self.window, self.notes, self.deep, self.listed) = (window, notes, window.is_deep(), listed);
    }

    /// Counts rows of a kind that this version does not know: the figure may lack something.
    pub(super) fn note_unknown(&mut self, kind: &str, rows: u32) {
        let unknown = self.notes.entry("unknown").or_insert_with(|| json!({}));
        let before = unknown[kind].as_u64().unwrap_or(0);
        unknown[kind] = json!(before + u64::from(rows));
    }
}

/// Settles one held item: checkpoints, then the end. The database numbers the calls, so that a
/// repeated one changes nothing.
pub(super) struct Settlement<'a> {
    supabase: &'a Supabase,
    item: &'a Claimed,
    month: Option<NaiveDate>,
    /// Is the real time, also in a replay.
    now: DateTime<Utc>,
    chunk: u32,
}

/// Says what the database made of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    Stored,
    Settled {
        failed: bool,
    },
    /// Another worker has the item; nothing was written.
    Lost,
}

/// Holds the arguments of `integration_settle`. They are written out at once: hundreds of movements
/// as a `Value` take ten times their space.
#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "as the function names them")]
struct Arguments<'a> {
    p_item_id: i64,
    p_lease_id: Uuid,
    p_user_id: Uuid,
    p_chunk: u32,
    p_final: bool,
    p_parts: &'a [Part],
    p_cursor: &'a Value,
    p_month: Option<NaiveDate>,
    p_as_of: DateTime<Utc>,
    p_reconnect: RefusalPolicy,
    p_now: DateTime<Utc>,
}

/// Names the fields of [`Arguments`].
const ARGUMENTS: [&str; 11] = [
    "p_item_id",
    "p_lease_id",
    "p_user_id",
    "p_chunk",
    "p_final",
    "p_parts",
    "p_cursor",
    "p_month",
    "p_as_of",
    "p_reconnect",
    "p_now",
];

/// Says what follows where an integration is refused: when its user is asked to connect it again, and how long the month's
/// recap waits for it.
#[derive(Serialize)]
struct RefusalPolicy {
    /// Is the number of refusals in a row before the first mail.
    refusals: u32,
    /// Is the number of mails at most until the integration is good again.
    mails: u32,
    /// Is the number of days between two of them.
    pause_days: u32,
    /// Is the number of days after which such a mail is not sent any more.
    open_days: u32,
    /// Lists the refusals that connecting again mends.
    codes: Vec<&'static str>,
    /// Lists the refusals that only one user can mend.
    users_codes: Vec<&'static str>,
    /// Is the day of the month after on which a recap leaves without what could not be read.
    recap_waits_until: u32,
    /// Is the number of hours since its last reading for which a recap waits for what only its user can mend.
    recap_waits_hours: u32,
}

fn refusal_policy() -> RefusalPolicy {
    RefusalPolicy {
        refusals: 3,
        mails: 2,
        pause_days: 30,
        open_days: 7,
        codes: mended_by_reconnecting(),
        users_codes: users_codes(),
        recap_waits_until: RECAP_WAITS_UNTIL,
        recap_waits_hours: 24,
    }
}

#[derive(Deserialize)]
struct Answer {
    state: Verdict,
    result: Option<Settled>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Stored,
    Settled,
    Lost,
}

#[derive(Deserialize)]
struct Settled {
    status: String,
}

impl<'a> Settlement<'a> {
    pub(super) fn new(
        supabase: &'a Supabase,
        item: &'a Claimed,
        month: Option<NaiveDate>,
        now: DateTime<Utc>,
    ) -> Self {
        // Going on under the same lease, numbers go on too: one used before would be taken for a repeated call.
        let chunk = if item.progress.lease == Some(item.lease) { item.progress.chunk } else { 0 };
        Self { supabase, item, month, now, chunk }
    }

    /// Tells whether a whole month is asked for, not what is new.
    pub(super) fn is_of_a_month(&self) -> bool {
        self.month.is_some()
    }

    /// Returns what is stored after a checkpoint.
    pub(super) fn progress(&self, cursor: Value) -> Progress {
        Progress { cursor: Some(cursor), lease: Some(self.item.lease), chunk: self.chunk }
    }

    /// Stores movements in the middle of the work; `cursor` comes back should this holder be lost.
    pub(super) async fn checkpoint(
        &mut self,
        parts: &[Part],
        cursor: &Value,
        deadline: &Deadline,
    ) -> Result<State, SupabaseError> {
        let call = self.prepare(parts, false, cursor)?;
        Self::call(call, deadline).await
    }

    /// Stores the last movements, coverage, totals and the result. The parts are without what was read afterwards,
    /// whatever the database answers: what is written out would otherwise wait in memory twice.
    pub(super) async fn finish(
        &mut self,
        parts: &mut [Part],
        deadline: &Deadline,
    ) -> Result<State, SupabaseError> {
        let call = self.prepare(parts, true, &Value::Null)?;
        parts.iter_mut().for_each(Part::clear);
        Self::call(call, deadline).await
    }

    fn prepare(&mut self, parts: &[Part], last: bool, cursor: &Value) -> Result<PreparedCall, SupabaseError> {
        self.chunk += 1;
        let arguments = Arguments {
            p_item_id: self.item.item_id,
            p_lease_id: self.item.lease,
            p_user_id: self.item.user_id,
            p_chunk: self.chunk,
            p_final: last,
            p_parts: parts,
            p_cursor: cursor,
            p_month: self.month,
            p_as_of: self.item.as_of,
            p_reconnect: refusal_policy(),
            p_now: self.now,
        };
        self.supabase.prepare("integration_settle", &ARGUMENTS, &arguments)
    }

    async fn call(call: PreparedCall, deadline: &Deadline) -> Result<State, SupabaseError> {
        let answer: Answer = call.call(deadline).await?;
        Ok(match answer.state {
            Verdict::Stored => State::Stored,
            Verdict::Settled => {
                State::Settled { failed: answer.result.is_some_and(|result| result.status == "error") }
            }
            Verdict::Lost => State::Lost,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_arguments_are_named() {
        let arguments = Arguments {
            p_item_id: 1,
            p_lease_id: Uuid::nil(),
            p_user_id: Uuid::nil(),
            p_chunk: 1,
            p_final: true,
            p_parts: &[],
            p_cursor: &Value::Null,
            p_month: None,
            p_as_of: DateTime::UNIX_EPOCH,
            p_reconnect: refusal_policy(),
            p_now: DateTime::UNIX_EPOCH,
        };
        let written = json!(arguments);
        let mut names: Vec<&str> = written.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = ARGUMENTS;
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected);
    }
}
