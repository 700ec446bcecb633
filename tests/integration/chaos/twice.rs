//! The queue delivers a message twice, or again while its worker is still at it.

use std::time::Duration;

use anyhow::Result;
use jobs::lane::Lane;
use reqwest::Method;
use stand_ins::faults::{Fault, InjectedFaults, Rule};

use super::{BATCH, Company, bearer, deliver_again, drained, time_passes, until};
use crate::world::Function;

/// Says how the message comes to a second worker.
#[derive(Clone, Copy, Debug)]
enum Again {
    /// There are two of it.
    Copied,
    /// Its visibility timeout passes.
    Visible,
}

/// A delay so long is longer than the second worker needs, where nothing disturbs it.
const BUSY: Fault = Fault::Delay(Duration::from_secs(2));

/// One worker is held up at `step`; meanwhile drain-queue gets the same messages.
async fn second_worker(
    company: &Company,
    (method, name, query): (Method, &str, &str),
    (faults, step): (&InjectedFaults, &str),
    again: Again,
    lanes: &[&str],
) -> Result<(Function, Function)> {
    let (first, second) = (company.world.function(name).await?, company.world.function("drain-queue").await?);
    faults.add(Rule::on(step, BUSY).times(1));
    let seen = faults.count(step);
    let bearer = bearer();
    let meanwhile = async {
        until(step, async || Ok(faults.count(step) > seen)).await?;
        match again {
            Again::Copied => deliver_again(&company.world, lanes).await?,
            Again::Visible => time_passes(&company.world).await?,
        }
        let answer = second.call(Method::POST, "", Some(&bearer)).await?;
        assert_eq!(answer.status, 202, "{}", answer.text);
        drained(&second).await
    };
    let (answer, done) = tokio::join!(first.call(method, query, Some(&bearer)), meanwhile);
    done?;
    let answer = answer?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    faults.clear();
    Ok((first, second))
}

/// Whatever was left to a later turn, and the messages that were too many.
async fn later(company: &Company) -> Result<()> {
    time_passes(&company.world).await?;
    company.drain().await?;
    for lane in Lane::ALL.map(Lane::as_str) {
        let sql = format!("select count(*) from pgmq.q_jobs_{lane}");
        let left: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(company.world.pool()).await?;
        assert_eq!(left, 0, "{lane}");
    }
    Ok(())
}

/// Items of data: a sync of each kind of shop, then months.
async fn data(again: Again) -> Result<()> {
    let company = Company::new(3, 0).await?;
    let world = &company.world;
    let gateway = world.environment.gateway.faults();
    let lanes: Vec<&str> = Lane::data().map(Lane::as_str).collect();
    let sync = (Method::POST, "sync-integrations", "");
    second_worker(&company, sync, (world.stripe.faults(), "balance_transactions"), again, &lanes).await?;
    let months = (Method::POST, "monthly-sync", "force=true");
    second_worker(&company, months, (gateway, "integration_settle"), again, &lanes).await?;
    world.cron("send-reminders", "").await?;
    later(&company).await?;
    company.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn items_that_are_delivered_twice() -> Result<()> {
    data(Again::Copied).await
}

#[tokio::test(flavor = "multi_thread")]
async fn items_whose_time_is_over_while_they_are_worked_on() -> Result<()> {
    data(Again::Visible).await
}

/// Mails that are claimed, sealed, on their way, accepted and not noted: a second worker gets them as well.
async fn mails(again: Again, steps: &[&str]) -> Result<()> {
    const PEOPLE: usize = 110;
    for &step in steps {
        let company = Company::new(0, PEOPLE).await?;
        let world = &company.world;
        let faults = if step == BATCH { world.resend.faults() } else { world.environment.gateway.faults() };
        second_worker(&company, (Method::GET, "daily-tasks", ""), (faults, step), again, &["marketing"])
            .await?;
        later(&company).await?;
        company.check().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mails_that_are_delivered_twice() -> Result<()> {
    mails(Again::Copied, &["mail_seal", BATCH]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn mails_whose_time_is_over_while_they_are_sent() -> Result<()> {
    mails(Again::Visible, &["mail_settle"]).await
}

/// The service itself is still at it: whoever asks under the same key is told to wait, and both learn the same.
#[tokio::test(flavor = "multi_thread")]
async fn mails_whose_time_is_over_while_the_service_works() -> Result<()> {
    let company = Company::new(0, 5).await?;
    let world = &company.world;
    world.resend.set_work(Duration::from_secs(1));
    let mails = (Method::GET, "daily-tasks", "");
    let step = (world.resend.faults(), BATCH);
    let (first, _) = second_worker(&company, mails, step, Again::Visible, &[]).await?;
    assert!(first.log().contains("taken over"), "{}", first.log());
    world.resend.set_work(Duration::ZERO);
    later(&company).await?;
    company.check().await
}
