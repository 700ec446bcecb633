//! What a shop and Stripe both tell, in other pieces, in another currency, or so that nobody can be sure: it counts once, or
//! it is said. Many merchants in one world, each with a story.

use anyhow::Result;
use serde_json::{Value, json};
use stand_ins::{
    shopify::{Sold, Tender},
    stripe::Payment,
};
use uuid::Uuid;

use super::{sync_at, world_at};
use crate::{clock::at, world::World};

const DAY: &str = "2026-11-10T09:00:00Z";
const BACK: &str = "2026-11-12T09:00:00Z";

/// Is somebody with an account at Stripe and a shop.
struct Merchant<'a> {
    world: &'a World,
    user: Uuid,
    account: String,
    shop: String,
}

impl<'a> Merchant<'a> {
    async fn new(world: &'a World, number: usize, currency: &str) -> Result<Self> {
        let (account, shop) = (format!("acct_both{number}"), format!("both{number}.myshopify.com"));
        let user = world.stripe_user(&account).await?;
        let token = format!("shpat_both{number}");
        world.shopify.add_shop(&shop, currency, &token);
        world.connect_shopify(user, &shop, &token, None).await?;
        Ok(Self { world, user, account, shop })
    }

    /// A buyer pays at Stripe.
    fn paid(&self, cents: i64) -> Payment {
        self.world.stripe.payment(&self.account, at(DAY), cents, "eur")
    }

    /// The same, in another currency than the account's.
    fn exchanged(&self, bought: (i64, &str), settled: (i64, &str)) -> Payment {
        self.world.stripe.converted_payment(&self.account, at(DAY), bought, settled)
    }

    fn refunded(&self, payment: &Payment, cents: i64) {
        self.world.stripe.refund(&self.account, &payment.charge, at(BACK), cents);
    }

    fn tender(&self, tender: Tender) -> Sold {
        self.world.shopify.tender(&self.shop, tender)
    }

    /// The shop tells a sale under the name of a charge.
    fn sold(&self, amount: &str, name: &str) -> Sold {
        self.tender(Tender::new(at(DAY), amount, "EUR").reference(name))
    }

    /// The shop tells another payment of the order, under the name of a charge.
    fn more(&self, amount: &str, name: &str, sold: &Sold) {
        self.tender(Tender::new(at(DAY), amount, "EUR").reference(name).same_order(sold));
    }

    /// The shop tells a refund, which names only its order.
    fn back(&self, amount: &str, sold: &Sold, method: &str) {
        self.tender(Tender::new(at(BACK), &format!("-{amount}"), "EUR").method(method).same_order(sold));
    }
}

/// Names a story, tells it, and says what is left in cents, and what the month says of it.
type Story = (&'static str, fn(&Merchant<'_>), i64, Value);

/// Plays stories, each by a merchant of its own, whose shop is in `currency`.
async fn play(currency: &str, stories: &[Story]) -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let mut users = Vec::new();
    for (number, (_, happens, ..)) in stories.iter().enumerate() {
        let merchant = Merchant::new(&world, number, currency).await?;
        happens(&merchant);
        users.push(merchant.user);
    }
    // Whichever of the two is read first, the next read knows both.
    for now in ["2026-11-18T12:10:00Z", "2026-11-18T18:10:00Z"] {
        sync_at(&mut world, now).await?;
    }
    for (user, (name, _, cents, flaws)) in users.into_iter().zip(stories) {
        let sql = "select coalesce(sum(amount_eur) * 100, 0)::bigint from public.ca_records \
            where user_id = $1 and source = 'auto_sync'";
        let sum: i64 = sqlx::query_scalar(sql).bind(user).fetch_one(world.pool()).await?;
        let sql = "select jobs.month_flaws($1, '2026-11-01', $2)";
        let said: Value =
            sqlx::query_scalar(sql).bind(user).bind(world.now()).fetch_one(world.pool()).await?;
        assert_eq!((sum, &said), (*cents, flaws), "{name}");
        let sql = "select public.threshold_details(jsonb_build_array(jsonb_build_object(\
            'user_id', $1, 'year', 2026, 'months', '[]'::jsonb))) -> 0 -> 'uncounted'";
        let foreign: Value = sqlx::query_scalar(sql).bind(user).fetch_one(world.pool()).await?;
        assert_eq!(foreign == json!([]), flaws.get("currency").is_none(), "{name}: {foreign}");
    }
    Ok(())
}

fn nothing() -> Value {
    json!({})
}

fn twice() -> Value {
    json!({"maybe_twice": 1})
}

/// A refund that one tells in one piece and the other in two, a charge that a shop tells in pieces of less than all of it.
#[tokio::test(flavor = "multi_thread")]
async fn other_pieces_are_the_same_money() -> Result<()> {
    let stories: [Story; 6] = [
        (
            "the shop has two refunds of one",
            |m| {
                let paid = m.paid(10_000);
                let sold = m.sold("100.0", &paid.charge);
                m.refunded(&paid, 2_000);
                m.back("10.0", &sold, "credit_card");
                m.back("10.0", &sold, "credit_card");
            },
            8_000,
            nothing(),
        ),
        (
            "Stripe has two refunds of one",
            |m| {
                let paid = m.paid(10_000);
                let sold = m.sold("100.0", &paid.charge);
                m.refunded(&paid, 500);
                m.refunded(&paid, 1_500);
                m.back("20.0", &sold, "credit_card");
            },
            8_000,
            nothing(),
        ),
        (
            "one refund is the same, another in pieces",
            |m| {
                let paid = m.paid(10_000);
                let sold = m.sold("100.0", &paid.charge);
                for cents in [1_000, 3_000] {
                    m.refunded(&paid, cents);
                }
                for amount in ["10.0", "12.5", "17.5"] {
                    m.back(amount, &sold, "credit_card");
                }
            },
            6_000,
            nothing(),
        ),
        (
            "60 and 30 of a charge of 100",
            |m| {
                let paid = m.paid(10_000);
                let sold = m.sold("60.0", &paid.charge);
                m.more("30.0", &paid.charge, &sold);
            },
            10_000,
            nothing(),
        ),
        (
            "two pieces in dollars, at another rate",
            |m| {
                let paid = m.exchanged((10_000, "usd"), (9_200, "eur"));
                let piece = |amount, shop| {
                    Tender::new(at(DAY), amount, "USD").shop_money(shop).reference(&paid.charge)
                };
                let sold = m.tender(piece("60.0", "55.9"));
                m.tender(piece("40.0", "37.3").same_order(&sold));
            },
            9_200,
            nothing(),
        ),
        (
            "one charge of two orders",
            |m| {
                let paid = m.paid(10_000);
                m.sold("60.0", &paid.charge);
                m.sold("40.0", &paid.intent);
            },
            10_000,
            nothing(),
        ),
    ];
    play("EUR", &stories).await
}

/// A refund by hand is no refund of a card, whatever it amounts to; nor is it the other way round.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_back_by_hand_is_money_of_its_own() -> Result<()> {
    let stories: [Story; 5] = [
        (
            "at Stripe, by its dashboard, and as much by bank transfer",
            |m| {
                let paid = m.paid(10_000);
                let sold = m.sold("100.0", &paid.charge);
                m.refunded(&paid, 2_000);
                m.back("20.0", &sold, "bank_deposit");
            },
            6_000,
            nothing(),
        ),
        (
            "in cash",
            |m| {
                let paid = m.paid(10_000);
                let sold = m.sold("100.0", &paid.charge);
                m.refunded(&paid, 2_000);
                m.back("20.0", &sold, "cash");
            },
            6_000,
            nothing(),
        ),
        (
            "more by hand than at Stripe",
            |m| {
                let paid = m.paid(10_000);
                let sold = m.sold("100.0", &paid.charge);
                m.refunded(&paid, 2_000);
                m.back("30.0", &sold, "Bank Deposit");
            },
            5_000,
            nothing(),
        ),
        (
            "an order that was paid by hand and by card",
            |m| {
                let paid = m.paid(6_000);
                let sold = m.sold("60.0", &paid.charge);
                m.tender(Tender::new(at(DAY), "40.0", "EUR").method("cash").same_order(&sold));
                m.refunded(&paid, 2_000);
                m.back("20.0", &sold, "credit_card");
                m.back("40.0", &sold, "cash");
            },
            4_000,
            nothing(),
        ),
        (
            "a bank transfer is no payment of the same amount at Stripe",
            |m| {
                m.paid(10_000);
                m.tender(Tender::new(at(DAY), "100.0", "EUR").method("bank_deposit"));
            },
            20_000,
            nothing(),
        ),
    ];
    play("EUR", &stories).await
}

/// What cannot be told apart is said.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_the_same_money_is_said() -> Result<()> {
    let stories: [Story; 8] = [
        (
            "two tenders name one charge of one of them",
            |m| {
                let paid = m.paid(10_000);
                let sold = m.sold("100.0", &paid.charge);
                m.more("100.0", &paid.charge, &sold);
            },
            20_000,
            twice(),
        ),
        (
            "the name is the intent's, which Stripe did not tell",
            |m| {
                let paid = m.paid(10_000);
                m.world.stripe.show(&m.account, &paid.transaction, json!({"source": paid.charge}));
                m.sold("100.0", &paid.intent);
            },
            20_000,
            twice(),
        ),
        (
            "the name is written otherwise",
            |m| {
                let paid = m.paid(10_000);
                m.sold("100.0", &paid.charge.to_uppercase());
            },
            20_000,
            twice(),
        ),
        (
            "the name stands in spaces",
            |m| {
                let paid = m.paid(10_000);
                m.sold("100.0", &format!(" {} ", paid.charge));
            },
            10_000,
            nothing(),
        ),
        (
            "a name that nobody knows, and nothing like it on its day",
            |m| {
                m.world.stripe.payment(&m.account, at("2026-11-11T09:00:00Z"), 10_000, "eur");
                m.sold("100.0", "ch_elsewhere");
            },
            20_000,
            nothing(),
        ),
        (
            "the refund is of another amount here and there",
            |m| {
                let paid = m.paid(10_000);
                let sold = m.sold("100.0", &paid.charge);
                m.refunded(&paid, 1_950);
                m.back("20.0", &sold, "credit_card");
            },
            6_050,
            twice(),
        ),
        (
            "the order of the refund is gone, and two days lie between",
            |m| {
                let paid = m.paid(10_000);
                m.sold("100.0", &paid.charge);
                m.refunded(&paid, 2_000);
                m.tender(Tender::new(at("2026-11-14T09:00:00Z"), "-20.0", "EUR").deleted_order());
            },
            6_000,
            json!({"refund_of_unknown_sale": 1}),
        ),
        (
            "the order of a refund is gone, and Stripe's has an order",
            |m| {
                let paid = m.paid(10_000);
                let sold = m.sold("100.0", &paid.charge);
                m.refunded(&paid, 2_000);
                m.back("20.0", &sold, "credit_card");
                m.tender(Tender::new(at("2026-11-14T09:00:00Z"), "-20.0", "EUR").deleted_order());
            },
            6_000,
            nothing(),
        ),
    ];
    play("EUR", &stories).await
}

/// What the shop only marks as paid has no name and no hour; a charge that it does not know has no order.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_marked_as_paid_may_be_the_same_money() -> Result<()> {
    let stories: [Story; 3] = [
        (
            "paid by a link at Stripe, marked as paid two days later",
            |m| {
                m.paid(10_000);
                m.tender(Tender::new(at(BACK), "100.0", "EUR").method("other"));
            },
            20_000,
            twice(),
        ),
        (
            "marked as paid before anything came at Stripe",
            |m| {
                m.paid(10_000);
                m.tender(Tender::new(at("2026-11-08T09:00:00Z"), "100.0", "EUR").method("manual"));
            },
            20_000,
            nothing(),
        ),
        (
            "two charges of one order, of which the shop knows one, and the dashboard pays the other back",
            |m| {
                let (paid, again) = (m.paid(10_000), m.paid(10_000));
                m.sold("100.0", &paid.charge);
                m.refunded(&again, 10_000);
            },
            10_000,
            nothing(),
        ),
    ];
    play("EUR", &stories).await
}

/// The account is paid in another currency than the shop is: what one of them has in euros, the other does not lack.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_euros_on_one_side_is_missing_on_none() -> Result<()> {
    let of_euros: [Story; 4] = [
        (
            "a shop in euros, an account in dollars",
            |m| {
                let paid = m.exchanged((9_200, "eur"), (10_000, "usd"));
                let sold = m.sold("92.0", &paid.charge);
                m.refunded(&paid, 5_000);
                m.back("46.0", &sold, "credit_card");
            },
            4_600,
            nothing(),
        ),
        (
            "what the shop does not have is missing",
            |m| {
                let paid = m.exchanged((9_200, "eur"), (10_000, "usd"));
                m.sold("92.0", &paid.charge);
                m.exchanged((1_000, "eur"), (1_100, "usd"));
            },
            9_200,
            json!({"currency": 1}),
        ),
        (
            "the buyer's dollars, paid back in half",
            |m| {
                let paid = m.exchanged((10_000, "usd"), (9_200, "eur"));
                let sold = Tender::new(at(DAY), "100.0", "USD").shop_money("91.5").reference(&paid.charge);
                let sold = m.tender(sold);
                m.refunded(&paid, 4_600);
                m.tender(Tender::new(at(BACK), "-50.0", "USD").shop_money("45.75").same_order(&sold));
            },
            4_600,
            nothing(),
        ),
        (
            "the buyer's dollars of an order that is gone",
            |m| {
                let paid = m.exchanged((10_000, "usd"), (9_200, "eur"));
                m.tender(Tender::new(at(DAY), "100.0", "USD").deleted_order().reference(&paid.intent));
            },
            9_200,
            nothing(),
        ),
    ];
    play("EUR", &of_euros).await?;
    let of_dollars: [Story; 2] = [
        (
            "a shop in dollars, an account in euros",
            |m| {
                let paid = m.exchanged((10_000, "usd"), (9_200, "eur"));
                let sold = m.tender(Tender::new(at(DAY), "100.0", "USD").reference(&paid.charge));
                m.refunded(&paid, 4_600);
                m.tender(Tender::new(at(BACK), "-50.0", "USD").same_order(&sold));
            },
            4_600,
            nothing(),
        ),
        (
            "what Stripe does not have is missing",
            |m| {
                let paid = m.exchanged((10_000, "usd"), (9_200, "eur"));
                m.tender(Tender::new(at(DAY), "100.0", "USD").reference(&paid.charge));
                m.tender(Tender::new(at(DAY), "30.0", "USD").method("paypal"));
            },
            9_200,
            json!({"currency": 1}),
        ),
    ];
    play("USD", &of_dollars).await
}
