//! The mail service: what it takes, what it refuses, and what it can be made to do.

mod support;

use std::time::Duration;

use anyhow::Result;
use local_stack::{Stack, faults::Rule, resend};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use support::http_client;

fn mail(to: &str) -> Value {
    json!({
        "from": "Comptalyze <bonjour@example.com>",
        "to": [to],
        "subject": "Déclarez votre chiffre d’affaires",
        "html": "<p>1 234,56 €</p>",
        "headers": {"List-Unsubscribe-Post": "List-Unsubscribe=One-Click"},
    })
}

async fn status_and_name(request: RequestBuilder) -> Result<(u16, Value)> {
    let response = request.send().await?;
    let status = response.status().as_u16();
    let body: Value = serde_json::from_str(&response.text().await?).unwrap_or_default();
    Ok((status, body["name"].clone()))
}

#[tokio::test]
async fn mails_arrive_once_and_faults_hit_them() -> Result<()> {
    let resend = Stack::shared().await?.resend().await?;
    let client = http_client();
    let post = |path: &str, body: &Value| {
        client
            .post(format!("{}{path}", resend.url()))
            .header("user-agent", "comptalyze-jobs/1.0")
            .bearer_auth(resend.key())
            .json(body)
    };

    // A batch, and the same batch again under its key.
    let batch = json!([mail("a@example.com"), mail("b@example.com")]);
    let keyed = || post("/emails/batch", &batch).header("idempotency-key", "batch-1");
    let first: Value = serde_json::from_str(&keyed().send().await?.text().await?)?;
    let second: Value = serde_json::from_str(&keyed().send().await?.text().await?)?;
    assert_eq!(first, second);
    let mails = resend.mails().await?;
    assert_eq!(mails.iter().map(|m| &*m.to[0]).collect::<Vec<_>>(), ["a@example.com", "b@example.com"]);
    assert_eq!(mails[0].subject, "Déclarez votre chiffre d’affaires");
    assert_eq!(mails[0].headers["List-Unsubscribe-Post"], "List-Unsubscribe=One-Click");
    let other = post("/emails/batch", &json!([mail("c@example.com")])).header("idempotency-key", "batch-1");
    assert_eq!(status_and_name(other).await?, (409, json!("invalid_idempotent_request")));
    let page = client.get(resend.inbox_url()).send().await?.text().await?;
    assert!(page.contains("b@example.com"), "{page}");

    // Refusals: nothing arrives.
    resend.clear().await?;
    let bare = || client.post(format!("{}/emails", resend.url())).json(&mail("d@example.com"));
    assert_eq!(status_and_name(bare().bearer_auth(resend.key())).await?, (403, Value::Null));
    let named = || bare().header("user-agent", "comptalyze-jobs/1.0");
    assert_eq!(status_and_name(named()).await?, (401, json!("missing_api_key")));
    assert_eq!(status_and_name(named().bearer_auth("re_wrong")).await?, (403, json!("invalid_api_key")));
    for (fault, expected) in [
        (resend::rate_limited(1), (429, "rate_limit_exceeded")),
        (resend::daily_quota_exceeded(), (429, "daily_quota_exceeded")),
        (resend::monthly_quota_exceeded(), (429, "monthly_quota_exceeded")),
        (resend::concurrent_idempotent_requests(), (409, "concurrent_idempotent_requests")),
    ] {
        resend.faults().add(Rule::on("/emails", fault).times(1));
        let (status, name) = status_and_name(post("/emails", &mail("d@example.com"))).await?;
        assert_eq!((status, name), (expected.0, json!(expected.1)));
    }
    resend.faults().add(Rule::on("/emails", resend::rate_limited(2)).times(1));
    let limited = post("/emails", &mail("d@example.com")).send().await?;
    assert_eq!(limited.headers()["retry-after"], "2");
    assert!(resend.mails().await?.is_empty());

    // An answer that never arrives: the mail does.
    resend.faults().add(Rule::on("/emails", local_stack::faults::Fault::CutAfter).times(1));
    let cut = post("/emails", &mail("e@example.com")).timeout(Duration::from_secs(10)).send().await;
    assert!(cut.is_err());
    assert_eq!(resend.mails().await?.len(), 1);
    Ok(())
}
