//! Puts in the people of the demonstration: what each of them shows, and what it must come to.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use uuid::Uuid;

use super::{
    Person, TokenKey,
    books::{Books, ShopBooks, Source, StripeBooks},
    calendar::Calendar,
    shopify_integration, stripe_integration, subscription, typed_turnover, user, wants_reminders,
};
use processes::database::Database;
use stand_ins::{shopify, stripe};

const GOODS: &str = "Vente de marchandises";
const SERVICES: &str = "Prestation de services";
const LIBERAL: &str = "Activité libérale";

/// These are Stripe's prices of the two plans that are paid for.
pub const PRICE_PRO: &str = "price_1ComptalyzePro";
pub const PRICE_PREMIUM: &str = "price_1ComptalyzePremium";

/// Represents a kind of mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mail {
    Offer,
    Reminder,
    Recap,
    Alert,
    /// It asks to connect again, after three refusals.
    Reconnect,
}

/// Holds everybody, once seeded.
#[derive(Clone, Debug, Default)]
pub struct People {
    pub names: BTreeMap<Uuid, String>,
    pub addresses: BTreeMap<Uuid, String>,
    /// Is in the order in which they came, with what each of them shows.
    pub list: Vec<(Uuid, &'static str)>,
    pub books: Books,
    /// Says how many integrations there are.
    pub integrations: usize,
    /// Says whose only integration does not work.
    pub in_trouble: Vec<Uuid>,
    /// Says who gets an offer, a reminder or an alert.
    mails: Vec<(Uuid, Mail)>,
    connected: BTreeSet<Uuid>,
}

impl People {
    /// Counts the users with at least one integration.
    pub fn connected(&self) -> usize {
        self.connected.len()
    }

    /// Returns who gets a month's recap.
    pub fn recaps(&self, month: NaiveDate) -> impl Iterator<Item = Uuid> {
        self.connected.iter().copied().filter(move |user| self.books.moved(*user, month))
    }

    /// Returns how many get an offer, a reminder or an alert.
    pub fn count(&self, mail: Mail) -> usize {
        self.mails.iter().filter(|(_, planned)| *planned == mail).count()
    }

    /// Returns everything that everybody gets, once everything was called.
    pub fn mails(&self, calendar: Calendar) -> Vec<(Uuid, Mail)> {
        let mut months = vec![calendar.previous_month()];
        months.extend(calendar.is_last_day().then(|| calendar.current_month()));
        let recaps = months.into_iter().flat_map(|month| self.recaps(month)).map(|user| (user, Mail::Recap));
        self.mails.iter().copied().chain(recaps).collect()
    }
}

/// Says where the people are put.
pub struct Town<'a> {
    pub db: &'a Database,
    pub stripe: &'a stripe::StandIn,
    pub shopify: &'a shopify::StandIn,
    pub key: &'a TokenKey,
    pub calendar: Calendar,
}

impl Town<'_> {
    /// Puts everybody in.
    pub async fn settle(&self) -> Result<People> {
        let mut people = People::default();
        self.camille(&mut people).await?;
        self.julien(&mut people).await?;
        self.sarah(&mut people).await?;
        self.thomas(&mut people).await?;
        self.elodie(&mut people).await?;
        self.nicolas(&mut people).await?;
        self.claire(&mut people).await?;
        self.ines(&mut people).await?;
        self.marc(&mut people).await?;
        self.hugo(&mut people).await?;
        Ok(people)
    }

    /// Returns the instant half a year before the demonstration.
    fn long_ago(&self) -> DateTime<Utc> {
        self.calendar.now() - TimeDelta::days(182)
    }

    async fn person(&self, people: &mut People, person: Person, shows: &'static str) -> Result<Uuid> {
        let id = user(self.db, &person).await?;
        people.names.insert(id, person.name);
        people.addresses.insert(id, person.email);
        people.list.push((id, shows));
        Ok(id)
    }

    /// Connects a Stripe account and opens its books.
    async fn stripe<'b>(
        &'b self,
        people: &'b mut People,
        user: Uuid,
        account: &'b str,
    ) -> Result<StripeBooks<'b>> {
        let token = format!("sk_test_{}", Uuid::new_v4().simple());
        self.stripe.add_account(account, &token);
        stripe_integration(self.db, self.key, user, account, &token).await?;
        people.integrations += 1;
        people.connected.insert(user);
        Ok(StripeBooks { stripe: self.stripe, books: &mut people.books, user, account })
    }

    /// Connects a shop with a permanent token and opens its books.
    async fn shop<'b>(
        &'b self,
        people: &'b mut People,
        user: Uuid,
        domain: &'b str,
    ) -> Result<ShopBooks<'b>> {
        let token = format!("shpat_{}", Uuid::new_v4().simple());
        self.shopify.add_shop(domain, "EUR", &token);
        shopify_integration(self.db, self.key, user, domain, &token, None).await?;
        people.integrations += 1;
        people.connected.insert(user);
        people.books.activity(user, Source::Shopify, GOODS);
        Ok(ShopBooks { shopify: self.shopify, books: &mut people.books, user, domain })
    }

    /// Puts in Camille, who has Stripe only: several pages, a refund, a dispute, a payout, and the edges of the month.
    async fn camille(&self, people: &mut People) -> Result<()> {
        let calendar = self.calendar;
        let person = Person::new("Camille Moreau", "camille.moreau@exemple.fr", self.long_ago());
        let user = self.person(people, person, "Stripe: two pages, a refund, a dispute, a payout").await?;
        people.books.activity(user, Source::Stripe, SERVICES);
        let mut books = self.stripe(people, user, "acct_1CamilleMoreau").await?;
        books.payment(calendar.previous(1, 0, 10), 4_500);
        let coaching = books.payment(calendar.previous(3, 10, 30), 24_000);
        books.payments(calendar.previous(10, 9, 0), TimeDelta::minutes(7), 150);
        books.payment(calendar.previous(0, 23, 10), 8_000);
        books.payout(calendar.current(5), 150_000);
        let workshop = books.payment(calendar.current(10), 36_000);
        books.refund(&coaching, calendar.current(30), 24_000);
        books.payment(calendar.current(55), 12_050);
        books.dispute(&workshop, calendar.current(80), 36_000);
        books.payment(calendar.current(99), 9_900);
        Ok(())
    }

    /// Puts in Julien, who has Shopify only, with a permanent token: a refund, a gift card, a chargeback that was lost.
    async fn julien(&self, people: &mut People) -> Result<()> {
        let calendar = self.calendar;
        let person = Person::new("Julien Lefèvre", "julien@atelier-lefevre.exemple.fr", self.long_ago());
        let user = self
            .person(people, person, "Shopify, permanent token: a refund, a gift card, a lost chargeback")
            .await?;
        let mut books = self.shop(people, user, "atelier-lefevre.myshopify.com").await?;
        let lamp = books.sale(calendar.previous(6, 14, 20), 18_900);
        books.sale(calendar.previous(21, 17, 5), 6_450);
        books.gift_card(calendar.current(8), 5_000);
        let vase = books.sale(calendar.current(15), 7_990);
        books.sale(calendar.current(60), 12_500);
        books.refund(&vase, calendar.current(62), 2_000);
        books.lost_dispute(&lamp, calendar.previous(20, 11, 0), calendar.current(40), 18_900);
        Ok(())
    }

    /// Puts in Sarah, whose shop is paid through Stripe: the same payment is seen on both sides.
    async fn sarah(&self, people: &mut People) -> Result<()> {
        let calendar = self.calendar;
        let person = Person::new("Sarah Benali", "sarah.benali@exemple.fr", self.long_ago());
        let user =
            self.person(people, person, "a shop paid through Stripe: both report the same payments").await?;
        people.books.activity(user, Source::Stripe, SERVICES);
        let mut seen = Vec::new();
        let mut books = self.stripe(people, user, "acct_1SarahBenali").await?;
        for (at, cents) in [
            (calendar.previous(12, 16, 40), 5_900),
            (calendar.current(20), 11_800),
            (calendar.current(45), 3_200),
        ] {
            seen.push((at, cents, books.payment(at, cents)));
        }
        let refund = books.refund(&seen[1].2, calendar.current(70), 1_800);
        books.payment(calendar.current(90), 40_000);

        let mut books = self.shop(people, user, "bougies-de-sarah.myshopify.com").await?;
        let second = TimeDelta::seconds(1);
        books.paid_by_stripe(seen[0].0 + second, seen[0].1, &seen[0].2.charge);
        let sale = books.paid_by_stripe(seen[1].0 + second, seen[1].1, &seen[1].2.intent);
        books.paid_by_stripe(seen[2].0 + second, seen[2].1, &seen[2].2.charge);
        books.refunded_by_stripe(&sale, calendar.current(70), 1_800, &refund.source);
        books.sale(calendar.current(75), 2_750);
        Ok(())
    }

    /// Puts in Thomas, whose shop's access token has expired: the sync renews it.
    async fn thomas(&self, people: &mut People) -> Result<()> {
        const DOMAIN: &str = "velos-girard.myshopify.com";
        let calendar = self.calendar;
        let person = Person::new("Thomas Girard", "thomas.girard@exemple.fr", self.long_ago());
        let user =
            self.person(people, person, "Shopify, expiring token that has expired: it is renewed").await?;
        let tokens = self.shopify.add_expiring_shop(DOMAIN, "EUR");
        self.shopify.expire_access_tokens(DOMAIN);
        let (access, refresh) = (&tokens.access_token, Some(tokens.refresh_token.as_str()));
        shopify_integration(self.db, self.key, user, DOMAIN, access, refresh).await?;
        people.integrations += 1;
        people.connected.insert(user);
        people.books.activity(user, Source::Shopify, GOODS);
        let mut books = ShopBooks { shopify: self.shopify, books: &mut people.books, user, domain: DOMAIN };
        books.sale(calendar.previous(18, 11, 15), 129_000);
        books.sale(calendar.current(35), 54_900);
        books.sale(calendar.current(85), 8_990);
        Ok(())
    }

    /// Dollars that stay dollars, and dollars that arrive as euros.
    async fn elodie(&self, people: &mut People) -> Result<()> {
        let calendar = self.calendar;
        let person = Person::new("Élodie Petit", "elodie.petit@exemple.fr", self.long_ago());
        let user = self.person(people, person, "Stripe with dollars: kept and reported, not counted").await?;
        people.books.activity(user, Source::Stripe, SERVICES);
        let mut books = self.stripe(people, user, "acct_1ElodiePetit").await?;
        books.dollars(calendar.previous(14, 22, 0), 30_000);
        books.payment(calendar.previous(24, 9, 45), 15_000);
        books.converted(calendar.current(25), 20_000, 18_342);
        books.dollars(calendar.current(50), 45_000);
        Ok(())
    }

    /// Has taken our access to Stripe back: an error of his own.
    async fn nicolas(&self, people: &mut People) -> Result<()> {
        let person = Person::new("Nicolas Roux", "nicolas.roux@exemple.fr", self.long_ago());
        let user =
            self.person(people, person, "Stripe, access taken back: the one error of the round").await?;
        self.stripe(people, user, "acct_1NicolasRoux").await?;
        self.stripe.revoke("acct_1NicolasRoux");
        people.in_trouble.push(user);
        // The round syncs three times and more.
        people.mails.push((user, Mail::Reconnect));
        Ok(())
    }

    /// Types turnover by hand, too: it stays beside what is imported, and says which activity hers is. Pays for
    /// Premium and wants to be reminded.
    async fn claire(&self, people: &mut People) -> Result<()> {
        let calendar = self.calendar;
        let person = Person::new("Claire Fontaine", "claire.fontaine@exemple.fr", self.long_ago());
        let user = self
            .person(people, person, "Premium: a reminder; Stripe, beside turnover that she types")
            .await?;
        subscription(self.db, user, PRICE_PREMIUM).await?;
        wants_reminders(self.db, user).await?;
        people.mails.push((user, Mail::Reminder));
        for (month, cents) in [(calendar.previous_month(), 120_000), (calendar.current_month(), 85_050)] {
            typed_turnover(self.db, user, month, LIBERAL, cents).await?;
        }
        people.books.activity(user, Source::Stripe, LIBERAL);
        let mut books = self.stripe(people, user, "acct_1ClaireFontaine").await?;
        books.payment(calendar.previous(8, 12, 0), 60_000);
        books.payment(calendar.current(12), 60_000);
        books.payment(calendar.current(65), 45_000);
        books.payment(calendar.just_now(), 7_500);
        Ok(())
    }

    /// Has had so much paid this month that a step of the VAT threshold is crossed by what is imported.
    async fn ines(&self, people: &mut People) -> Result<()> {
        let calendar = self.calendar;
        let person = Person::new("Inès Garcia", "ines.garcia@exemple.fr", self.long_ago());
        let user =
            self.person(people, person, "Stripe: 35 400 € this month, an alert after the sync").await?;
        people.books.activity(user, Source::Stripe, SERVICES);
        people.mails.push((user, Mail::Alert));
        let mut books = self.stripe(people, user, "acct_1InesGarcia").await?;
        // Over by the last missed sync, wherever in the month we are.
        books.payment(calendar.current(15), 1_180_000);
        books.payment(calendar.current(35), 1_180_000);
        books.payment(calendar.current(55), 1_180_000);
        Ok(())
    }

    /// Has typed so much that several ceilings are crossed: one mail tells them all.
    async fn marc(&self, people: &mut People) -> Result<()> {
        let person = Person::new("Marc Dubois", "marc.dubois@exemple.fr", self.long_ago());
        let user = self.person(people, person, "types 78 000 €: one alert for several thresholds").await?;
        typed_turnover(self.db, user, self.calendar.current_month(), SERVICES, 7_800_000).await?;
        people.mails.push((user, Mail::Alert));
        Ok(())
    }

    /// Puts in Hugo, who signed up three days ago and has connected nothing.
    async fn hugo(&self, people: &mut People) -> Result<()> {
        let signed_up = self.calendar.days_ago(3);
        let person = Person::new("Hugo Lambert", "hugo.lambert@exemple.fr", signed_up);
        let user = self.person(people, person, "free, signed up three days ago: the J+3 mail").await?;
        people.mails.push((user, Mail::Offer));
        Ok(())
    }
}
