//! A deploy changes what the mails say while both deployments drain.

use std::time::Duration;

use anyhow::Result;
use reqwest::Method;
use stand_ins::faults::{Fault, Rule};

use super::{BATCH, Company, bearer, time_passes, until};
use crate::mails::delivery::plan;

/// The old deployment leaves three batches: one accepted and its answers lost, one never arrived,
/// one on its way.
#[tokio::test(flavor = "multi_thread")]
async fn a_template_changes_in_the_middle_of_a_drain() -> Result<()> {
    const PEOPLE: usize = 250;
    let mut company = Company::new(0, PEOPLE).await?;
    let resend = company.world.resend.faults().clone();
    // Who is in which batch: they are claimed in the order in which they were planned.
    plan(&company.world).await?;
    let planned: Vec<String> = sqlx::query_scalar(
        "select u.email::text from pgmq.q_jobs_marketing m \
         join jobs.job_items i on i.item_id = (m.message ->> 'item_id')::bigint \
         join auth.users u on u.id = i.user_id order by m.msg_id",
    )
    .fetch_all(company.world.pool())
    .await?;
    let on = |n: usize, fault| Rule::on(BATCH, fault).body(&format!("\"{}\"", planned[n]));
    resend.add(on(0, Fault::CutAfter).times(2));
    resend.add(on(100, Fault::CutBefore).times(2));
    resend.add(on(200, Fault::Delay(Duration::from_secs(3))).times(1));
    let old = company.world.function("daily-tasks").await?;
    company.world.set("SENDER_IDENTITY", "Comptalyze SAS, 2 rue d’Ailleurs, 69000 Lyon");
    let new = company.world.function("daily-orchestrator").await?;
    let bearer = bearer();
    let meanwhile = async {
        until("two batches with unknown outcomes, one on its way", async || {
            let given_back = "select count(*) from jobs.email_deliveries d join jobs.job_items i using (item_id) \
                              where d.status = 'sealed' and i.lease_id is null";
            Ok(company.world.value::<i64>(given_back).await? == 200 && resend.count(BATCH) == 5)
        })
        .await?;
        time_passes(&company.world).await?;
        new.call(Method::GET, "", Some(&bearer)).await
    };
    let (of_old, of_new) = tokio::join!(old.call(Method::GET, "", Some(&bearer)), meanwhile);
    for answer in [of_old?, of_new?] {
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    time_passes(&company.world).await?;
    company.world.cron("daily-tasks", "").await?;
    company.check().await?;
    let says = |place: &str| {
        let accepted = company.world.resend.accepted();
        accepted.iter().filter(|a| a.mail.text.as_deref().is_some_and(|text| text.contains(place))).count()
    };
    let (old, new) = (says("75000 Paris"), says("69000 Lyon"));
    assert_eq!(old + new, PEOPLE);
    assert!(old >= 100 && new >= 100, "as the service got it first: {old}, {new}");
    let attempts: i64 = company.world.value("select sum(attempts)::bigint from jobs.job_items").await?;
    assert_eq!(attempts, 200, "one for each mail whose outcome was not known");
    Ok(())
}
