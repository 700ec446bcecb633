//! Makes one round of calls: as the crons make them now, as a missed cron is replayed, and as an operator makes them.

use anyhow::{Context, Result};
use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use jobs::routes::Route;
use serde_json::Value;

use super::{
    Demo,
    call::{Answer, Caller, Client},
    changes::Snapshot,
    inbox::{self, Inbox},
    verdict::{MonthResult, Problems, Went},
};
use crate::seed::{
    calendar::{self, month_of},
    people::Mail,
};

const DAILY: &str = Route::DailyOrchestrator.path();
const MONTHLY: &str = Route::MonthlyOrchestrator.path();
const REMINDERS: &str = Route::SendReminders.path();
const OFFERS: &str = Route::DailyTasks.path();
const THRESHOLDS: &str = Route::CheckThresholds.path();
const SYNC: &str = Route::SyncIntegrations.path();
const MONTH: &str = Route::MonthlySync.path();
const DAILY_CRON: Caller = Caller::Cron("0 */6 * * *");
const MONTHLY_CRON: Caller = Caller::Cron("0 7 * * *");
const REMINDERS_CRON: Caller = Caller::Cron("0 7 2 * *");
const OFFERS_CRON: Caller = Caller::Cron("0 9 * * *");

/// Says what the integrations in trouble leave over, and how many they are.
#[derive(Clone, Copy)]
struct Expected {
    integrations: usize,
    users: usize,
    failed: usize,
}

pub(super) struct Round<'a> {
    demo: &'a Demo,
    client: Client,
    problems: Problems,
    last: Snapshot,
    /// Is the Paris month of the first sync: imported turnover is written from there on.
    first_month: Option<NaiveDate>,
}

impl<'a> Round<'a> {
    pub(super) fn new(demo: &'a Demo) -> Result<Self> {
        let client = Client::new(demo.dev.url(), &demo.secret)?;
        let (problems, last) = (Problems::default(), Snapshot::default());
        Ok(Self { demo, client, problems, last, first_month: None })
    }

    /// Makes the calls; answers what was not what it must be.
    pub(super) async fn run(mut self) -> Result<Vec<String>> {
        let people = &self.demo.people;
        let failed = people.in_trouble.len();
        let expected = Expected {
            integrations: people.integrations - failed,
            users: people.connected() - failed,
            failed,
        };
        self.last = Snapshot::take(&self.demo.environment.db).await?;
        self.crons_now(expected).await?;
        self.replays(expected).await?;
        self.operator().await?;
        self.figures();
        self.mails();
        self.again().await?;
        Ok(self.problems.found)
    }

    /// Calls the crons: they do whatever is due now.
    async fn crons_now(&mut self, Expected { integrations, users, failed }: Expected) -> Result<()> {
        let now = self.demo.calendar.now();
        let daily = self.call(DAILY_CRON, DAILY).await?;
        let went = Went::RanOrSkipped { worked: integrations, failed };
        self.problems.part(&daily, "syncIntegrations", "synced", went);
        let offers = self.demo.people.count(Mail::Offer);
        self.problems.part(
            &daily,
            "marketingEmails",
            "sent",
            Went::RanOrSkipped { worked: offers, failed: 0 },
        );
        self.imported(&daily, "syncIntegrations", now);

        let monthly = self.call(MONTHLY_CRON, MONTHLY).await?;
        let went = Went::RanOrSkipped { worked: users, failed };
        self.problems.part(&monthly, "monthlySync", "synced", went);
        let reminders = self.demo.people.count(Mail::Reminder);
        self.problems.part(
            &monthly,
            "reminders",
            "sent",
            Went::RanOrSkipped { worked: reminders, failed: 0 },
        );
        // On a month's last day outside the sync hours, nothing was imported before.
        self.imported(&monthly, "monthlySync", now);
        Ok(())
    }

    /// Replays what would be due if its crons had been missed: the last sync hour, the last day of
    /// the previous month, this month's 2nd, yesterday's offers.
    async fn replays(&mut self, Expected { integrations, users, failed }: Expected) -> Result<()> {
        let calendar = self.demo.calendar;
        let at = calendar.missed_sync();
        let daily = self.call(DAILY_CRON, &replay(DAILY, at)).await?;
        let went = Went::Ran { worked: integrations, failed };
        self.problems.part(&daily, "syncIntegrations", "synced", went);
        self.problems.part(&daily, "marketingEmails", "sent", Went::Well);
        self.imported(&daily, "syncIntegrations", at);

        let monthly = self.call(MONTHLY_CRON, &replay(MONTHLY, calendar.missed_month_end())).await?;
        self.problems.part(&monthly, "monthlySync", "synced", Went::Ran { worked: users, failed });
        self.problems.part(&monthly, "reminders", "sent", Went::Well);
        let month = calendar.previous_month();
        self.problems.mails(&monthly, "monthlySync", "recaps", self.demo.people.recaps(month).count());
        let results = self.stored_results(month).await?;
        self.check_month(&results, month);

        let reminders = self.call(REMINDERS_CRON, &replay(REMINDERS, calendar.missed_reminders())).await?;
        self.problems.sent(&reminders.body, self.demo.people.count(Mail::Reminder));
        let offers = self.call(OFFERS_CRON, &replay(OFFERS, calendar.missed_offers())).await?;
        self.problems.part(&offers, "upgradeEmails", "sent", Went::Well);
        Ok(())
    }

    /// Asks for thresholds, a sync, both again, and the current month.
    async fn operator(&mut self) -> Result<()> {
        let typed = self.call(Caller::Operator, THRESHOLDS).await?;
        self.problems.sent(&typed.body, self.demo.people.count(Mail::Alert) - 1);
        let again = self.call(Caller::Operator, THRESHOLDS).await?;
        self.problems.sent(&again.body, 0);

        let before = self.last.count("integration_transactions");
        let first = self.call(Caller::Operator, SYNC).await?;
        let new = self.last.count("integration_transactions") - before;
        self.problems.sync(&first, &self.demo.people, u64::try_from(new).ok());
        let second = self.call(Caller::Operator, SYNC).await?;
        self.problems.sync(&second, &self.demo.people, Some(0));

        let month = self.demo.calendar.current_month();
        let answer = self.call(Caller::Operator, &format!("{MONTH}?month={}", calendar::name(month))).await?;
        if answer.body["errors"] != self.demo.people.in_trouble.len() {
            self.problems.add(format_args!("errors is {}", answer.body["errors"]));
        }
        let results = answer.body["results"].as_array().cloned().unwrap_or_default();
        self.check_month(&results, month);
        Ok(())
    }

    /// Compares what is in the database at the end with the sums of the seed.
    fn figures(&mut self) {
        let people = &self.demo.people;
        self.problems.about("in the end");
        let (stored, seeded) = (self.last.count("integration_transactions"), people.books.len());
        if usize::try_from(stored).ok() != Some(seeded) {
            self.problems.add(format_args!("{stored} movements are stored of {seeded}"));
        }
        let turnover = people.books.turnover(self.first_month.unwrap_or(self.demo.calendar.current_month()));
        for difference in self.last.differences(&turnover, &people.names) {
            self.problems.add(difference);
        }
    }

    /// Compares what has arrived with what the seed says.
    fn mails(&mut self) {
        let Demo { people, resend, calendar, .. } = self.demo;
        self.problems.about("mails");
        let inbox = Inbox::read(resend);
        println!("\n━━ {} mails in the inbox, {}", inbox.len(), resend.inbox_url());
        inbox::print(resend);
        let expected = Inbox::expected(&people.mails(*calendar), people);
        for difference in inbox.differences(&expected) {
            self.problems.add(difference);
        }
    }

    /// Calls everything that sends mails once more: nobody gets another one.
    async fn again(&mut self) -> Result<()> {
        let Demo { resend, calendar, .. } = self.demo;
        let before = Inbox::read(resend);
        println!("\n━━ the same again");
        for (caller, target) in [
            (DAILY_CRON, DAILY.to_owned()),
            (MONTHLY_CRON, MONTHLY.to_owned()),
            (MONTHLY_CRON, replay(MONTHLY, calendar.missed_month_end())),
            (REMINDERS_CRON, replay(REMINDERS, calendar.missed_reminders())),
            (OFFERS_CRON, replay(OFFERS, calendar.missed_offers())),
            (Caller::Operator, THRESHOLDS.to_owned()),
            (Caller::Operator, format!("{MONTH}?force=true")),
            (Caller::Operator, SYNC.to_owned()),
        ] {
            self.problems.about(&format!("{target}, again"));
            let answer = self.client.call_briefly(caller, &target).await?;
            self.problems.status(&answer);
        }
        let after = Inbox::read(resend);
        println!("   {} mails in the inbox: {} more", after.len(), after.len() - before.len());
        self.problems.about("a second round");
        for difference in after.differences(&before) {
            self.problems.add(difference);
        }
        Ok(())
    }

    /// Calls, and shows what has changed.
    async fn call(&mut self, caller: Caller, target: &str) -> Result<Answer> {
        self.problems.about(target);
        let answer = self.client.call(caller, target).await?;
        self.problems.status(&answer);
        if answer.status >= 500 {
            println!("   The functions' log ends with:\n{}", self.demo.dev.log_tail());
        }
        let now = Snapshot::take(&self.demo.environment.db).await?;
        now.print_changes(&self.last, &self.demo.people.names);
        self.last = now;
        Ok(answer)
    }

    /// Remembers the first task that imported anything: with it, whoever crossed a threshold by what it imported was
    /// told.
    fn imported(&mut self, answer: &Answer, task: &str, as_of: DateTime<Utc>) {
        if answer.body["results"][task]["skipped"] != true && self.first_month.is_none() {
            self.first_month = Some(month_of(as_of));
            self.problems.mails(answer, task, "alerts", 1);
        }
    }

    fn check_month(&mut self, results: &[Value], month: NaiveDate) {
        let read: Vec<MonthResult> = results.iter().filter_map(MonthResult::read).collect();
        if read.len() != results.len() {
            self.problems.add(format_args!("{} results are no month", results.len() - read.len()));
        }
        let people = &self.demo.people;
        self.problems.month(&read, people, |user| people.books.month(user, month));
    }

    /// An orchestrator's answer only counts: the users' figures of its run are in its items.
    async fn stored_results(&self, month: NaiveDate) -> Result<Vec<Value>> {
        sqlx::query_scalar(
            "select result from jobs.job_items where kind = 'sync_month' and payload ->> 'month' = $1",
        )
        .bind(calendar::name(month))
        .fetch_all(self.demo.environment.db.pool())
        .await
        .context("cannot read the results of the month")
    }
}

fn replay(path: &str, at: DateTime<Utc>) -> String {
    format!("{path}?at={}", at.to_rfc3339_opts(SecondsFormat::Secs, true))
}
