//! Reading an integration's window to its end, page by page.

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    Clients, Integration, OpenPayment,
    account::{self, Access},
    error::ItemError,
    settle::{Part, Settlement, State},
};
use crate::{
    deadline::Deadline,
    providers::{
        CursorGuard, ErrorKind, Page, Provider, ProviderError, RefusedReason, shopify::Disputes,
        stripe::StripeAccountId,
    },
    queue::{Permit, Progress},
    schedule::Window,
};

/// So many movements are kept in memory at most before a checkpoint stores them, however large the window is.
const CHECKPOINT_EVERY: usize = 2_000;
/// After so many movements (half a minute of pages or less) a reading yields to items that wait.
const YIELD_AFTER_MOVEMENTS: usize = 5 * CHECKPOINT_EVERY;

/// A movement bears its payment's date, give or take this much.
const TENDER_MAY_DIFFER: TimeDelta = TimeDelta::hours(1);

/// Says where a reading had got to at its last checkpoint. The window is part of it: a cursor is
/// valid only within the window it was made for.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct ReadPosition {
    provider: Provider,
    /// A cursor is not valid in another account or shop: there the reading begins anew.
    account: String,
    window: Window,
    list: List,
    after: Option<String>,
    notes: Map<String, Value>,
    /// Counts the rows of the list of movements up to there.
    #[serde(default)]
    listed: Option<u64>,
}

/// Names the lists of a provider, which are read one after the other.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum List {
    /// It lists Stripe's balance transactions, or Shopify's tender transactions.
    Movements,
    /// It lists Shopify's disputes.
    Disputes,
    /// It lists what Shopify's orders say was paid.
    Orders,
}

/// Says how a reading ended.
pub(super) enum End {
    Read,
    /// Another worker has the item.
    Lost,
    /// Everything so far is stored; other items wait for a permit.
    Yielded(Progress),
}

/// Reads one item.
pub(super) struct Reader<'a> {
    pub(super) clients: &'a Clients,
    pub(super) settlement: Settlement<'a>,
    /// Holds the parts of the item so far; the last one is being read.
    pub(super) parts: Vec<Part>,
    pub(super) permit: &'a mut Permit,
    /// Counts the movements that were read and stored before the end.
    pub(super) read: usize,
    pub(super) now: DateTime<Utc>,
    pub(super) deadline: Deadline,
    /// Is set where a failure that passes is not tried again, but settled.
    pub(super) is_last_attempt: bool,
}

impl Reader<'_> {
    /// Reads one integration into a new last part, from `resume_from` where an earlier worker had got so far.
    pub(super) async fn read(
        &mut self,
        integration: &mut Integration,
        window: Window,
        count_month: bool,
        resume_from: Option<ReadPosition>,
    ) -> Result<End, ItemError> {
        self.parts.push(Part::new(integration, window, count_month));
        let part = self.parts.len() - 1;
        let (mut access, mut proof) =
            account::open(self.clients, integration, self.now, &self.deadline).await?;
        let account = access.account().to_owned();
        let resume_from = resume_from.filter(|position| position.account == account);
        if proof.is_none() {
            self.parts[part].account = Some(account.clone());
        }

        let (mut window, mut first, mut after) = (window, List::Movements, None);
        if let Some(position) = resume_from {
            (window, first, after) = (position.window, position.list, position.after);
            self.parts[part].resume(position.window, position.notes, position.listed);
        }
        let lists: &[List] = match integration.provider {
            Provider::Stripe => &[List::Movements],
            // The second source beside the list of movements: with the read that reaches far back, and with months.
            Provider::Shopify if window.is_deep() || self.settlement.is_of_a_month() => {
                &[List::Movements, List::Disputes, List::Orders]
            }
            Provider::Shopify => &[List::Movements, List::Disputes],
        };
        let mut left_at_checkpoint = self.deadline.remaining();
        for &list in lists.iter().skip_while(|list| **list != first) {
            let mut guard = CursorGuard::new(integration.provider, after.as_deref());
            loop {
                let (clients, deadline) = (self.clients, self.deadline);
                let page = self.page(integration, &mut access, window, list, after.as_deref());
                // The first page is read while the proof is noted; nothing is stored before it is.
                let page = match proof.take() {
                    Some(proof) => {
                        let (page, noted) = join(page, proof.note(clients, &deadline)).await;
                        noted?;
                        self.parts[part].account = Some(account.clone());
                        page?
                    }
                    None => page.await?,
                };
                let next = self.take(page, list);
                if let Some(next) = &next {
                    guard.advance(next)?;
                }
                after = next;
                if after.is_none() {
                    break;
                }
                let held = self.parts.iter().map(Part::held).sum::<usize>();
                let out_of_time = !self.deadline.may_start_work();
                // Pages may come slowly and hold little: a page that fails afterwards must not cost them all, each time anew.
                let is_overdue = self.deadline.remaining() < left_at_checkpoint * 2 / 3;
                if held < CHECKPOINT_EVERY && !out_of_time && !is_overdue {
                    continue;
                }
                let position = self.position(window, list, after.clone());
                if self.checkpoint(&position).await? != State::Stored {
                    return Ok(End::Lost);
                }
                if out_of_time {
                    return Err(ItemError::out_of_time());
                }
                self.read += held;
                left_at_checkpoint = self.deadline.remaining();
                // Only in the first part: what was read before a later one would be read again.
                if self.read >= YIELD_AFTER_MOVEMENTS && part == 0 && self.permit.is_wanted() {
                    return Ok(End::Yielded(self.settlement.progress(json!(position))));
                }
            }
        }
        match &access {
            _ if self.settlement.is_of_a_month() => {}
            Access::Stripe { account } => self.follow(&integration.open, account, window).await?,
            Access::Shopify { .. } if window.is_deep() => {
                self.look_again(integration, &mut access, window).await?;
            }
            Access::Shopify { .. } => {}
        }
        if let (Access::Shopify { .. }, Some(version)) = (&access, self.clients.shopify.other_version()) {
            let told =
                format!("Shopify a répondu avec la version {version} de son interface, pas celle demandée");
            self.parts[part].notes.insert("version".into(), told.into());
        }
        Ok(End::Read)
    }

    /// Asks for payments that were on their way and lie before the window, one by one: however old, they are followed
    /// until they are settled.
    async fn follow(
        &mut self,
        open: &[OpenPayment],
        account: &StripeAccountId,
        window: Window,
    ) -> Result<(), ItemError> {
        for payment in open.iter().filter(|payment| payment.listed_at.is_some_and(|at| at < window.from)) {
            if !self.deadline.may_start_work() {
                return Err(ItemError::out_of_time());
            }
            let found = self.clients.stripe.balance_transaction(account, &payment.id, &self.deadline).await?;
            if let (Some(movement), Some(part)) = (found, self.parts.last_mut()) {
                part.movements.push(movement);
            }
        }
        Ok(())
    }

    /// Looks in the list of movements for payments that only an order told of, before the window: a sale that was made offline
    /// may have shown since, and the list is not read so far back again.
    async fn look_again(
        &mut self,
        integration: &mut Integration,
        access: &mut Access,
        window: Window,
    ) -> Result<(), ItemError> {
        let mut around: Vec<Window> = Vec::new();
        let mut days: Vec<_> = integration.open.iter().filter_map(|payment| payment.listed_at).collect();
        days.sort_unstable();
        for at in days.into_iter().filter(|at| *at < window.from) {
            let (from, to) = (at - TENDER_MAY_DIFFER, at + TENDER_MAY_DIFFER);
            match around.last_mut() {
                Some(last) if from <= last.to => last.to = to,
                _ => around.push(Window { from, to }),
            }
        }
        for hours in around {
            let mut after = None;
            let mut guard = CursorGuard::new(integration.provider, None);
            loop {
                if !self.deadline.may_start_work() {
                    return Err(ItemError::out_of_time());
                }
                let page = self.page(integration, access, hours, List::Movements, after.as_deref()).await?;
                if let Some(part) = self.parts.last_mut() {
                    part.movements.extend(page.movements);
                }
                after = page.next;
                let Some(next) = &after else { break };
                guard.advance(next)?;
            }
        }
        Ok(())
    }

    /// Returns the position of the last part's reading.
    fn position(&self, window: Window, list: List, after: Option<String>) -> ReadPosition {
        let part = self.parts.last().expect("a part is being read");
        ReadPosition {
            provider: part.provider,
            account: part.account.clone().unwrap_or_default(),
            window,
            list,
            after,
            notes: part.notes.clone(),
            listed: part.listed,
        }
    }

    /// Adds a page to the last part; answers where the next one begins.
    fn take(&mut self, page: Page, list: List) -> Option<String> {
        if let Some(part) = self.parts.last_mut() {
            if list == List::Movements {
                part.listed = part.listed.map(|listed| listed + page.movements.len() as u64);
            }
            part.movements.extend(page.movements);
            part.order_payments.extend(page.order_payments);
            for (kind, rows) in page.unknown {
                part.note_unknown(&kind, rows);
            }
        }
        page.next
    }

    async fn checkpoint(&mut self, position: &ReadPosition) -> Result<State, ItemError> {
        let state = self.settlement.checkpoint(&self.parts, &json!(position), &self.deadline).await?;
        self.parts.iter_mut().for_each(Part::clear);
        Ok(state)
    }

    async fn page(
        &mut self,
        integration: &mut Integration,
        access: &mut Access,
        window: Window,
        list: List,
        after: Option<&str>,
    ) -> Result<Page, ItemError> {
        match self.ask(access, window, list, after).await {
            // The token ended in the middle of the reading: renew it once, ask the same page again.
            Err(error) if account::is_rejected_token(&error) && integration.refresh_token.is_some() => {
                let Access::Shopify { shop, token } = access else { return Err(error.into()) };
                account::refresh(self.clients, integration, shop, self.now, &self.deadline).await?;
                *token = self.clients.token_key.decrypt(&integration.access_token)?;
                Ok(self.ask(access, window, list, after).await?)
            }
            answer => Ok(answer?),
        }
    }

    async fn ask(
        &mut self,
        access: &Access,
        window: Window,
        list: List,
        after: Option<&str>,
    ) -> Result<Page, ProviderError> {
        let deadline = &self.deadline;
        match (access, list) {
            (Access::Stripe { account }, _) => {
                self.clients.stripe.balance_transactions(account, window, after, deadline).await
            }
            (Access::Shopify { shop, token }, List::Movements) => {
                self.clients.shopify.tender_page(shop, token, window, after, deadline).await
            }
            (Access::Shopify { shop, token }, List::Orders) => {
                let orders = self.clients.shopify.order_page(shop, token, window, after, self.now, deadline);
                match orders.await {
                    // They are only compared with: the list of tenders was read, and counts.
                    Err(error)
                        if is_of_the_orders(&error) || (self.is_last_attempt && is_their_server(&error)) =>
                    {
                        if let Some(part) = self.parts.last_mut() {
                            let told = format!("commandes non comparées : {}", error.code());
                            part.notes.insert("orders".into(), told.into());
                        }
                        Ok(Page::default())
                    }
                    page => page,
                }
            }
            (Access::Shopify { shop, token }, List::Disputes) => {
                let disputes =
                    self.clients.shopify.dispute_page(shop, token, window, after, self.now, deadline).await?;
                Ok(match disputes {
                    Disputes::Page(page) => page,
                    Disputes::NotAvailable => {
                        if let Some(part) = self.parts.last_mut() {
                            part.notes
                                .insert("disputes".into(), "non lisibles : autorisation absente".into());
                        }
                        Page::default()
                    }
                })
            }
        }
    }
}

/// Returns whether it lies in a shop's orders alone that they cannot be read, now and at the next try.
fn is_of_the_orders(error: &ProviderError) -> bool {
    matches!(
        error.kind,
        ErrorKind::Refused(
            RefusedReason::MissingScope
                | RefusedReason::BadRequest
                | RefusedReason::SearchIgnored
                | RefusedReason::TooExpensive
                | RefusedReason::InvalidAnswer(_)
        )
    )
}

/// Returns whether the provider's server failed, or its answer did not come: no limit, and no lack of time.
fn is_their_server(error: &ProviderError) -> bool {
    matches!(error.kind, ErrorKind::Transient(_)) && error.counts_as_attempt()
}

/// Returns the position that an earlier worker stored, where this version understands it.
pub(super) fn stored_position(cursor: Option<&Value>) -> Option<ReadPosition> {
    serde_json::from_value(cursor?.clone()).ok()
}

impl ReadPosition {
    pub(super) fn provider(&self) -> Provider {
        self.provider
    }

    pub(super) fn window_end(&self) -> DateTime<Utc> {
        self.window.to
    }
}
