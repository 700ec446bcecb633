//! The data API goes away between the seal and the settlement of mails.

use anyhow::Result;
use reqwest::Method;
use stand_ins::faults::Rule;

use super::{BATCH, Company, bearer, slow, time_passes, until};

async fn restarted(stays_away: bool) -> Result<()> {
    const PEOPLE: usize = 230;
    let mut company = Company::new(0, PEOPLE).await?;
    let resend = company.world.resend.faults().clone();
    resend.add(Rule::on(BATCH, slow()));
    let function = company.world.function("daily-tasks").await?;
    let call = tokio::spawn(async move { function.call(Method::GET, "", Some(&bearer())).await });
    until("a request with mails", async || Ok(resend.count(BATCH) > 0)).await?;
    let sealed: i64 =
        company.world.value("select count(*) from jobs.email_deliveries where status = 'sealed'").await?;
    assert!(sealed >= 100, "{sealed}");
    company.world.environment.postgrest.kill();
    until("mails that nobody can note", async || Ok(company.world.resend.accepted_count() >= 100)).await?;
    let answer = if stays_away {
        let answer = call.await??;
        company.world.environment.postgrest.resume().await?;
        answer
    } else {
        company.world.environment.postgrest.resume().await?;
        call.await??
    };
    // How long a restart takes is the machine's: it was waited for, or said.
    assert!([200, 503].contains(&answer.status.as_u16()), "{} {}", answer.status, answer.text);
    if stays_away {
        assert_eq!(answer.status, 503, "{}", answer.text);
        assert!(answer.json()["error"].is_string() || answer.text.contains("base"), "{}", answer.text);
    }
    resend.clear();
    time_passes(&company.world).await?;
    let answer = company.world.cron("daily-tasks", "").await?;
    let part = &answer["results"]["upgradeEmails"];
    assert_eq!((part["sent"].as_u64(), part["errors"].as_u64()), (Some(PEOPLE as u64), Some(0)), "{answer}");
    company.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_mails_are_sent_and_it_comes_back() -> Result<()> {
    restarted(false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_mails_are_sent_and_it_stays_away() -> Result<()> {
    restarted(true).await
}
