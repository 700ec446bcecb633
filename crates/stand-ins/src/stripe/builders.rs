//! What a test or the seed puts into the ledgers.

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    StandIn,
    ledger::Entry,
    objects::{PassedOn, Source},
    state::State,
};

/// Holds the ids of a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// Is `txn_…`, the balance transaction.
    pub transaction: String,
    /// Is `ch_…`.
    pub charge: String,
    /// Is `pi_…`.
    pub intent: String,
}

/// Holds the ids of a movement that is no payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Movement {
    /// Is `txn_…`, the balance transaction.
    pub transaction: String,
    /// Names what moved the money: `re_…`, `du_…`, `po_…`; empty when nothing stands behind the
    /// row.
    pub source: String,
}

/// Stripe's own cut in these ledgers: 1.5 % and 25 cents.
fn processing_fee(amount: i64) -> i64 {
    amount * 15 / 1000 + 25
}

/// An account or a charge that does not exist is a mistake of the test that called, and a panic.
impl StandIn {
    /// Adds a card payment in the settlement currency.
    pub fn payment(&self, account: &str, at: DateTime<Utc>, amount: i64, currency: &str) -> Payment {
        payment(&mut self.state(), account, Entry::new(at, amount, currency), None)
    }

    /// Adds a SEPA debit on the day it is sent to the bank. Its row is there at once, its charge is
    /// `pending`, and `available_on` is the day on which the money is expected
    /// (<https://support.stripe.com/questions/changes-to-balance-transaction-behavior-for-debit-payment-methods>).
    pub fn debit(&self, account: &str, sent: DateTime<Utc>, amount: i64, expected: DateTime<Utc>) -> Payment {
        let mut state = self.state();
        let (charge, intent) = (state.new_id("py"), state.new_id("pi"));
        let source = Source::Charge {
            intent: intent.clone(),
            amount,
            currency: "eur".into(),
            created: sent.timestamp(),
            method: "sepa_debit",
            status: "pending",
            passed_on: None,
        };
        let entry = Entry::new(sent, amount, "eur").kind("payment", "charge").available_on(expected).fee(35);
        let added = add(&mut state, account, entry.source(&charge, source));
        Payment { transaction: added.transaction, charge, intent }
    }

    /// Lets a debit succeed; only its charge's status changes.
    pub fn settle_debit(&self, account: &str, debit: &Payment) {
        self.set_charge_status(account, &debit.charge, "succeeded");
    }

    /// Lets a debit fail: a second row takes it back.
    pub fn fail_debit(&self, account: &str, debit: &Payment, at: DateTime<Utc>) -> Movement {
        self.set_charge_status(account, &debit.charge, "failed");
        let mut state = self.state();
        let amount = state.account_mut(account).row_mut(&debit.transaction).amount;
        let failed = state.account(account).sources[&debit.charge].clone();
        let entry = Entry::new(at, -amount, "eur").kind("payment_failure_refund", "charge_failure");
        add(&mut state, account, entry.source(&debit.charge, failed))
    }

    fn set_charge_status(&self, account: &str, charge: &str, now: &'static str) {
        match self.state().account_mut(account).sources.get_mut(charge) {
            Some(Source::Charge { status, .. }) => *status = now,
            _ => panic!("{account} has no charge {charge}"),
        }
    }

    /// Adds a payment of a buyer to a platform, as the seller's account shows it: what was passed on by a transfer
    /// (<https://docs.stripe.com/connect/destination-charges>; `source_transfer` is "the transfer ID which created this
    /// charge").
    pub fn passed_on(&self, account: &str, at: DateTime<Utc>, amount: i64, how: PassedOn) -> Payment {
        let mut state = self.state();
        let (charge, intent) = (state.new_id("py"), state.new_id("pi"));
        let source = Source::Charge {
            intent: intent.clone(),
            amount,
            currency: "eur".into(),
            created: at.timestamp(),
            method: "card",
            status: "succeeded",
            passed_on: Some(how),
        };
        let entry = Entry::new(at, amount, "eur").kind("payment", "charge");
        let added = add(&mut state, account, entry.source(&charge, source));
        Payment { transaction: added.transaction, charge, intent }
    }

    /// Adds a payment by PayPal of a seller who has PayPal settle it: its row is zero, "regardless of the payment"
    /// (<https://docs.stripe.com/payments/paypal/choose-settlement-preference>).
    pub fn paid_at_paypal(&self, account: &str, at: DateTime<Utc>, amount: i64) -> Payment {
        let mut state = self.state();
        let (charge, intent) = (state.new_id("py"), state.new_id("pi"));
        let source = Source::Charge {
            intent: intent.clone(),
            amount,
            currency: "eur".into(),
            created: at.timestamp(),
            method: "paypal",
            status: "succeeded",
            passed_on: None,
        };
        let entry = Entry::new(at, 0, "eur").kind("payment", "charge").fee(0);
        let added = add(&mut state, account, entry.source(&charge, source));
        Payment { transaction: added.transaction, charge, intent }
    }

    /// Takes a part of the transfer behind a payment back, as a platform does, for instance for its
    /// fee (<https://docs.stripe.com/api/refunds/object#refund_object-source_transfer_reversal>).
    pub fn transfer_reversal(&self, account: &str, charge: &str, at: DateTime<Utc>, amount: i64) -> Movement {
        let movement = self.against_charge(account, charge, at, -amount, ("payment_refund", "refund", 0));
        if let Some(Source::Refund { by_platform, .. }) =
            self.state().account_mut(account).sources.get_mut(&movement.source)
        {
            *by_platform = true;
        }
        movement
    }

    /// Adds a card payment of `amount` in `currency` that settles as `settled` in
    /// `settlement_currency`.
    #[expect(clippy::cast_precision_loss, reason = "an exchange rate, not an amount")]
    pub fn converted_payment(
        &self,
        account: &str,
        at: DateTime<Utc>,
        (amount, currency): (i64, &str),
        (settled, settlement_currency): (i64, &str),
    ) -> Payment {
        let entry =
            Entry::new(at, settled, settlement_currency).exchange_rate(settled as f64 / amount as f64);
        payment(&mut self.state(), account, entry, Some((amount, currency.to_lowercase())))
    }

    /// Adds a payment whose authorisation was `authorised`, of which only `captured` was taken: two
    /// rows.
    pub fn partial_capture(
        &self,
        account: &str,
        at: DateTime<Utc>,
        (authorised, captured): (i64, i64),
        currency: &str,
    ) -> (Payment, Movement) {
        let paid = self.payment(account, at, authorised, currency);
        let reversal = self.against_charge(
            account,
            &paid.charge,
            at,
            captured - authorised,
            ("refund", "partial_capture_reversal", 0),
        );
        (paid, reversal)
    }

    /// Pays `amount` of a charge back.
    pub fn refund(&self, account: &str, charge: &str, at: DateTime<Utc>, amount: i64) -> Movement {
        self.against_charge(account, charge, at, -amount, ("refund", "refund", 0))
    }

    /// Asks for a refund that cannot be paid yet, because the account has no money (`insufficient_funds`) or the payment
    /// itself has not come (`charge_pending`: <https://docs.stripe.com/changelog/basil/2025-04-30/refund-pending-reason>).
    ///
    /// Its row is there at once. The vendor does not say whether it is: he speaks of a refund "that results in a negative
    /// Stripe balance" and "will not be sent"
    /// (<https://support.stripe.com/questions/pending-refunds-due-to-insufficient-funds-or-stripe-balance>), and lets a
    /// refund have no balance transaction. The other way is a [`refund`](Self::refund) on the day it is paid.
    pub fn waiting_refund(
        &self,
        account: &str,
        charge: &str,
        at: DateTime<Utc>,
        amount: i64,
        reason: &'static str,
    ) -> Movement {
        let refund = self.refund(account, charge, at, amount);
        self.set_refund(account, &refund, "pending", Some(reason));
        refund
    }

    /// Pays a refund that has waited; only the refund's status changes.
    pub fn pay_refund(&self, account: &str, refund: &Movement) {
        self.set_refund(account, refund, "succeeded", None);
    }

    fn set_refund(&self, account: &str, refund: &Movement, now: &'static str, why: Option<&'static str>) {
        match self.state().account_mut(account).sources.get_mut(&refund.source) {
            Some(Source::Refund { status, pending_reason, .. }) => (*status, *pending_reason) = (now, why),
            _ => panic!("{account} has no refund {}", refund.source),
        }
    }

    /// Sends a refund of `amount` back, as the customer's bank does. What comes back of a card's payment has a category of its
    /// own; of any other way to pay it has the refund's type (<https://docs.stripe.com/reports/balance-transaction-types>), and
    /// so its category (<https://docs.stripe.com/reports/reporting-categories>).
    pub fn refund_failure(&self, account: &str, charge: &str, at: DateTime<Utc>, amount: i64) -> Movement {
        let kind = if charge.starts_with("py_") {
            ("payment_refund", "refund", 0)
        } else {
            ("refund_failure", "refund_failure", 0)
        };
        self.against_charge(account, charge, at, amount, kind)
    }

    /// Lets a bank debit fail that had succeeded days before.
    pub fn charge_failure(&self, account: &str, charge: &str, at: DateTime<Utc>, amount: i64) -> Movement {
        self.against_charge(account, charge, at, -amount, ("payment_failure_refund", "charge_failure", 0))
    }

    /// The customer's bank takes `amount` back, and Stripe its 20.00.
    pub fn dispute(&self, account: &str, charge: &str, at: DateTime<Utc>, amount: i64) -> Movement {
        self.against_charge(account, charge, at, -amount, ("adjustment", "dispute", 2_000))
    }

    /// Wins a dispute: `amount` comes back.
    pub fn dispute_reversal(&self, account: &str, charge: &str, at: DateTime<Utc>, amount: i64) -> Movement {
        self.against_charge(account, charge, at, amount, ("adjustment", "dispute_reversal", 0))
    }

    /// Moves money to the bank account: no turnover.
    pub fn payout(&self, account: &str, at: DateTime<Utc>, amount: i64, currency: &str) -> Movement {
        let source = Source::Payout { amount, currency: currency.to_lowercase(), created: at.timestamp() };
        let entry = Entry::new(at, -amount, currency).kind("payout", "payout").description("STRIPE PAYOUT");
        self.sourced(account, entry, "po", source)
    }

    /// Moves money from the bank account: no turnover.
    pub fn top_up(&self, account: &str, at: DateTime<Utc>, amount: i64, currency: &str) -> Movement {
        let source = Source::Topup { amount, currency: currency.to_lowercase(), created: at.timestamp() };
        self.sourced(account, Entry::new(at, amount, currency).kind("topup", "topup"), "tu", source)
    }

    /// Bills a fee apart from payments, as Stripe does.
    pub fn fee(&self, account: &str, at: DateTime<Utc>, amount: i64, currency: &str) -> Movement {
        let entry = Entry::new(at, -amount, currency).kind("stripe_fee", "fee").description("Billing");
        self.add(account, entry)
    }

    /// Adds any other row.
    pub fn add(&self, account: &str, entry: Entry) -> Movement {
        add(&mut self.state(), account, entry)
    }

    /// Takes a row out of the lists, as if it were not visible yet.
    pub fn hide(&self, account: &str, transaction: &str) {
        self.state().account_mut(account).row_mut(transaction).hidden = true;
    }

    /// Shows other values in some fields of a row from now on; null takes a field away.
    pub fn show(&self, account: &str, transaction: &str, fields: serde_json::Value) {
        self.state().account_mut(account).row_mut(transaction).oddities = fields;
    }

    /// Makes a late row visible; its `created` stays what it was.
    pub fn reveal(&self, account: &str, transaction: &str) {
        self.state().account_mut(account).row_mut(transaction).hidden = false;
    }

    /// Adds `count` payments, `every` apart from `from` on, always the same: 10.00, 10.01, … 10.99,
    /// 10.00, … Returns the sum of their amounts.
    pub fn payments(
        &self,
        account: &str,
        from: DateTime<Utc>,
        every: TimeDelta,
        count: usize,
        currency: &str,
    ) -> i64 {
        let mut state = self.state();
        let (mut at, mut sum) = (from, 0);
        for amount in (1_000..1_100).cycle().take(count) {
            payment(&mut state, account, Entry::new(at, amount, currency), None);
            at += every;
            sum += amount;
        }
        sum
    }

    /// Adds a row about an existing charge, in proportion when the charge was made in another
    /// currency.
    fn against_charge(
        &self,
        account: &str,
        charge: &str,
        at: DateTime<Utc>,
        amount: i64,
        (kind, category, fee): (&str, &str, i64),
    ) -> Movement {
        let (intent, charged, currency) = match self.state().account(account).sources.get(charge) {
            Some(Source::Charge { intent, amount, currency, .. }) => {
                (intent.clone(), *amount, currency.clone())
            }
            _ => panic!("{account} has no charge {charge}"),
        };
        let (settled, settlement) = self
            .state()
            .account(account)
            .rows()
            .find(|row| row.source.as_deref() == Some(charge))
            .map_or_else(|| (charged, currency.clone()), |row| (row.amount, row.currency.clone()));
        // What the buyer gets back, in the money in which the charge was made.
        let told = if settled == 0 { amount.abs() } else { amount.abs() * charged / settled };
        let (charge, created) = (charge.to_owned(), at.timestamp());
        // What comes back points to the refund or the dispute with which it went.
        let comes_back =
            matches!(category, "refund_failure" | "dispute_reversal") || (category == "refund" && amount > 0);
        let before = comes_back.then(|| self.state().account(account).against(&charge, category)).flatten();
        let (prefix, source) = if category.starts_with("dispute") {
            let won = category == "dispute_reversal";
            ("du", Source::Dispute { charge, intent, amount: told, currency, created, won })
        } else {
            let status = if comes_back { "failed" } else { "succeeded" };
            let (amount, pending_reason, by_platform) = (told, None, false);
            let refund = Source::Refund {
                charge,
                intent,
                amount,
                currency,
                created,
                status,
                pending_reason,
                by_platform,
            };
            ("re", refund)
        };
        let entry = Entry::new(at, amount, &settlement).kind(kind, category).fee(fee);
        match before {
            Some(id) => self.add(account, entry.source(&id, source)),
            None => self.sourced(account, entry, prefix, source),
        }
    }

    fn sourced(&self, account: &str, entry: Entry, prefix: &str, source: Source) -> Movement {
        let mut state = self.state();
        let id = state.new_id(prefix);
        add(&mut state, account, entry.source(&id, source))
    }
}

fn payment(state: &mut State, account: &str, entry: Entry, charged: Option<(i64, String)>) -> Payment {
    let (charge, intent) = (state.new_id("ch"), state.new_id("pi"));
    let (amount, currency) = charged.unwrap_or_else(|| (entry.amount, entry.currency.clone()));
    let (intent_of, created) = (intent.clone(), entry.at.timestamp());
    let source = Source::Charge {
        intent: intent_of,
        amount,
        currency,
        created,
        method: "card",
        status: "succeeded",
        passed_on: None,
    };
    let fee = processing_fee(entry.amount);
    let added = add(state, account, entry.fee(fee).source(&charge, source));
    Payment { transaction: added.transaction, charge, intent }
}

fn add(state: &mut State, account: &str, entry: Entry) -> Movement {
    let transaction = state.new_id("txn");
    let (row, source) = entry.into_row(transaction.clone());
    let account = state.account_mut(account);
    account.insert(row);
    let id = source.map(|(id, source)| {
        account.sources.insert(id.clone(), source);
        id
    });
    Movement { transaction, source: id.unwrap_or_default() }
}
