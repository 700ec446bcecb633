//! Which months belong to which account, as the tests believe it: written down beside the product, knowing nothing of how
//! it decides (docs/adr/0016).

use anyhow::Result;
use uuid::Uuid;

use crate::world::{World, encrypt};

/// Lists the accounts at Stripe that a user connects in turn.
pub(super) const ACCOUNTS: [&str; 2] = ["acct_history", "acct_other"];

/// Returns the token with which an account is connected.
pub(super) fn token(account: &str) -> String {
    format!("sk_{account}")
}

/// Says when a movement counts.
#[derive(Clone)]
pub(super) enum Rule {
    /// It is the shop's, which is never replaced.
    Always,
    /// It is an account's: it counts where the account's books have its month.
    Of(usize),
    /// It is the shop's word for a payment of an account's: it counts where the account's books lack the payment's month.
    Unless(usize, String),
}

/// Holds the months of each account's books: from the month of each connection to the month in which another one was seen.
pub(super) struct Books {
    pub(super) present: usize,
    spans: [Vec<(String, Option<String>)>; 2],
    /// Says which accounts are out of the books for now.
    out: [bool; 2],
}

impl Books {
    pub(super) fn new(month: String) -> Self {
        Self { present: 0, spans: [vec![(month, None)], Vec::new()], out: [false; 2] }
    }

    pub(super) fn account(&self) -> &'static str {
        ACCOUNTS[self.present]
    }

    /// Returns the month with which the present connection began.
    pub(super) fn since(&self) -> &str {
        self.spans[self.present].last().map_or("", |(from, _)| from)
    }

    pub(super) fn count(&self, rule: &Rule, month: &str) -> bool {
        let have = |account: usize, month: &str| {
            self.spans[account]
                .iter()
                .any(|(from, to)| from.as_str() <= month && to.as_ref().is_none_or(|to| month <= to.as_str()))
        };
        match rule {
            Rule::Always => true,
            Rule::Of(account) => have(*account, month),
            Rule::Unless(account, month) => !have(*account, month),
        }
    }

    /// Connects the other account in place of the present one.
    pub(super) async fn switch(&mut self, world: &World, user: Uuid) -> Result<()> {
        let month = world.month().to_string();
        if let Some((_, to)) = self.spans[self.present].last_mut() {
            *to = Some(month.clone());
        }
        self.present = 1 - self.present;
        self.spans[self.present].push((month, None));
        // Connected again, it is back in the books.
        self.out[self.present] = false;
        sqlx::query(
            "update public.integration_tokens set stripe_account_id = $2, access_token = $3, connected_at = $4 \
             where user_id = $1 and provider = 'stripe'",
        )
        .bind(user)
        .bind(self.account())
        .bind(encrypt(&token(self.account())))
        .bind(world.now())
        .execute(world.pool())
        .await?;
        Ok(())
    }

    /// Takes an account out of the books that is in, or back that is out, where the product knows it.
    pub(super) async fn turn(&mut self, world: &World, user: Uuid, account: usize) -> Result<()> {
        let known = "select exists (select from jobs.integration_state where user_id = $1 and account = $2) \
            or exists (select from jobs.former_accounts where user_id = $1 and account = $2)";
        let known: bool =
            sqlx::query_scalar(known).bind(user).bind(ACCOUNTS[account]).fetch_one(world.pool()).await?;
        if known {
            self.out[account] = !self.out[account];
            self.write(world, user, account).await?;
        }
        Ok(())
    }

    /// Takes back into the books what is out of them.
    pub(super) async fn all_in(&mut self, world: &World, user: Uuid) -> Result<()> {
        for account in 0..ACCOUNTS.len() {
            if self.out[account] {
                self.turn(world, user, account).await?;
            }
        }
        Ok(())
    }

    async fn write(&self, world: &World, user: Uuid, account: usize) -> Result<()> {
        sqlx::query("select jobs.leave_account_out($1, 'stripe', $2, $3, $4)")
            .bind(user)
            .bind(ACCOUNTS[account])
            .bind(self.out[account])
            .bind(world.now())
            .execute(world.pool())
            .await?;
        Ok(())
    }
}
