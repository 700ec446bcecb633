//! The mail service: what it takes, what it refuses, and what it can be made to do.

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use reqwest::{RequestBuilder, header::HeaderMap};
use resend_rs::{
    ConfigBuilder, Error,
    events::{EmailEvent, EmailEventType, Event, try_parse_event},
    idempotent::IdempotentTrait,
    types::{BatchValidation, CreateEmailBaseOptions, ErrorKind},
};
use serde_json::{Value, json};
use stand_ins::{
    Stack,
    faults::{Fault, Rule},
    resend::{
        self, Limits, Resend,
        webhooks::{self, Bounce},
    },
};
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
    resend.faults().add(Rule::on("/emails", Fault::CutAfter).times(1));
    let cut = post("/emails", &mail("e@example.com")).timeout(Duration::from_secs(10)).send().await;
    assert!(cut.is_err());
    let (mails, accepted) = (resend.mails().await?, resend.accepted());
    assert_eq!((mails.len(), accepted.len()), (1, 1));
    assert_eq!(mails[0].id, accepted[0].mail.id);

    // A part of a batch: the emulator gets that part, and what it answers to is passed on.
    resend.clear().await?;
    let batch = json!([mail("f@example.com"), mail("f"), mail("g@example.com")]);
    let permissive = post("/emails/batch", &batch).header("x-batch-validation", "permissive");
    let answer: Value = serde_json::from_str(&permissive.send().await?.text().await?)?;
    let mails = resend.mails().await?;
    assert_eq!(mails.iter().map(|m| &*m.to[0]).collect::<Vec<_>>(), ["f@example.com", "g@example.com"]);
    assert_eq!(answer["data"], json!([{"id": mails[0].id}, {"id": mails[1].id}]));
    assert_eq!(answer["errors"][0]["index"], 1);
    let one = client.get(format!("{}/emails/{}", resend.url(), mails[0].id));
    let one = one.header("user-agent", "comptalyze-jobs/1.0").bearer_auth(resend.key()).send().await?;
    assert_eq!(one.status(), 200);
    Ok(())
}

/// Calls a Resend that keeps the mails itself.
struct Caller {
    resend: Resend,
    client: reqwest::Client,
}

impl Caller {
    async fn new() -> Result<Self> {
        Ok(Self { resend: Resend::bare().await?, client: http_client() })
    }

    fn request(&self, method: reqwest::Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.resend.url()))
            .header("user-agent", "comptalyze-jobs/1.0")
            .bearer_auth(self.resend.key())
    }

    fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.request(reqwest::Method::POST, path).json(body)
    }

    fn keyed(&self, path: &str, key: &str, body: &Value) -> RequestBuilder {
        self.post(path, body).header("idempotency-key", key)
    }

    /// As the product sends.
    fn sdk(&self) -> Result<resend_rs::Resend> {
        let config = ConfigBuilder::new(self.resend.key())
            .base_url(self.resend.url().parse()?)
            .client(self.client.clone())
            .build();
        Ok(resend_rs::Resend::with_config(config))
    }

    /// Returns who was sent a mail, in order.
    fn recipients(&self) -> Vec<String> {
        self.resend.accepted().iter().map(|accepted| accepted.mail.to[0].clone()).collect()
    }
}

async fn answer(request: RequestBuilder) -> Result<(u16, HeaderMap, Value)> {
    let response = request.send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Ok((status, headers, serde_json::from_str(&response.text().await?)?))
}

fn options(to: &str) -> CreateEmailBaseOptions {
    CreateEmailBaseOptions::new("Comptalyze <bonjour@example.com>", [to], "Rappel").with_text("Bonjour")
}

#[tokio::test]
async fn a_strict_batch_is_taken_whole_or_not_at_all() -> Result<()> {
    let caller = Caller::new().await?;
    caller.resend.refuse_address("Bad@example.com");
    let mut untitled = mail("b@example.com");
    untitled["subject"] = Value::Null;
    for (refused, expected) in [
        (mail("b"), "validation_error"),
        (mail("Bad <bad@EXAMPLE.com>"), "validation_error"),
        (untitled, "missing_required_field"),
    ] {
        let batch = caller.post("/emails/batch", &json!([mail("a@example.com"), refused]));
        assert_eq!(status_and_name(batch).await?, (422, json!(expected)));
        let alone = caller.post("/emails", &refused);
        assert_eq!(status_and_name(alone).await?, (422, json!(expected)));
    }
    let (_, _, body) = answer(caller.post("/emails", &mail("b"))).await?;
    let expected = "Invalid `to` field. The email address needs to follow the `email@example.com` or `Name \
                    <email@example.com>` format.";
    assert_eq!(body, json!({"statusCode": 422, "name": "validation_error", "message": expected}));

    for (length, status) in [(0, 422), (1, 200), (100, 200), (101, 422)] {
        let batch = json!(vec![mail("a@example.com"); length]);
        for mode in ["strict", "permissive"] {
            let request = caller.post("/emails/batch", &batch).header("x-batch-validation", mode);
            assert_eq!(status_and_name(request).await?.0, status, "{length} {mode}");
        }
    }
    assert_eq!(caller.resend.accepted_count(), 202);
    Ok(())
}

#[tokio::test]
async fn a_permissive_batch_says_whose_mail_it_did_not_take() -> Result<()> {
    let caller = Caller::new().await?;
    caller.resend.refuse_address("bad@example.com");
    let send = || async {
        let batch = ["a@example.com", "bad@example.com", "c@example.com", "d"].map(options);
        let batch = batch.with_idempotency_key("reminders/2026-11/1");
        caller
            .sdk()?
            .batch
            .send_with_batch_validation(batch, BatchValidation::Permissive)
            .await
            .context("send")
    };
    let first = send().await?;
    assert_eq!(first.data.len(), 2);
    assert_eq!(first.errors.iter().map(|error| error.index).collect::<Vec<_>>(), [1, 3]);
    assert!(first.errors[0].message.starts_with("Invalid `to` field."), "{:?}", first.errors);
    assert_eq!(caller.recipients(), ["a@example.com", "c@example.com"]);

    let accepted = &caller.resend.accepted()[0];
    assert_eq!(accepted.key.as_deref(), Some("reminders/2026-11/1"));
    assert_eq!(accepted.mail.id, *first.data[0].id);
    assert_eq!((accepted.mail.subject.as_str(), accepted.mail.text.as_deref()), ("Rappel", Some("Bonjour")));

    // The same again: the same answer with its errors, and no second mail.
    assert_eq!(serde_json::to_value(send().await?)?, serde_json::to_value(first)?);
    assert_eq!(caller.resend.accepted_count(), 2);
    Ok(())
}

#[tokio::test]
async fn a_key_is_good_for_one_payload() -> Result<()> {
    let caller = Caller::new().await?;
    let (path, batch) = ("/emails/batch", json!([mail("a@example.com")]));
    for (key, status) in [("k".repeat(256), 200), ("k".repeat(257), 400), (String::new(), 400)] {
        let (found, name) = status_and_name(caller.keyed(path, &key, &batch)).await?;
        assert_eq!(found, status);
        if status == 400 {
            assert_eq!(name, "invalid_idempotency_key");
        }
    }

    // A refusal leaves its key free.
    let refused = json!([mail("a")]);
    assert_eq!(status_and_name(caller.keyed(path, "free", &refused)).await?.0, 422);
    let (status, _, first) = answer(caller.keyed(path, "free", &batch)).await?;
    assert_eq!(status, 200);
    assert_eq!(answer(caller.keyed(path, "free", &batch)).await?.2, first);

    // Another payload, in whatever byte, and another endpoint are refused: even a payload that is invalid.
    let spaced = format!("{batch} ");
    let other = caller.keyed(path, "free", &json!(null)).body(spaced);
    for request in [other, caller.keyed(path, "free", &refused), caller.keyed("/emails", "free", &batch)] {
        assert_eq!(status_and_name(request).await?, (409, json!("invalid_idempotent_request")));
    }
    assert_eq!(caller.resend.accepted_count(), 2);

    // A day later the key is free, and the mail goes out again.
    caller.resend.forget_keys();
    assert_ne!(answer(caller.keyed(path, "free", &batch)).await?.2, first);
    assert_eq!(caller.resend.accepted_count(), 3);
    Ok(())
}

#[tokio::test]
async fn a_key_is_taken_while_its_work_is_under_way() -> Result<()> {
    let caller = Caller::new().await?;
    caller.resend.set_work(Duration::from_secs(2));
    let batch = json!([mail("a@example.com")]);
    let request = || caller.keyed("/emails/batch", "slow", &batch);

    // The first caller does not wait; the service works on.
    let first = tokio::spawn(request().send());
    while caller.resend.faults().count("/emails/batch") == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    first.abort();
    assert_eq!(status_and_name(request()).await?, (409, json!("concurrent_idempotent_requests")));
    let deadline = Instant::now() + Duration::from_secs(10);
    let done = loop {
        let (status, _, body) = answer(request()).await?;
        if status == 200 {
            break body;
        }
        assert!(status == 409 && Instant::now() < deadline, "{status} {body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let accepted = caller.resend.accepted();
    assert_eq!(accepted.len(), 1);
    assert_eq!(done, json!({"data": [{"id": accepted[0].mail.id}]}));
    Ok(())
}

#[tokio::test]
async fn a_quota_is_never_exceeded_and_usage_shows_it() -> Result<()> {
    let caller = Caller::new().await?;
    let sdk = caller.sdk()?;
    let usage = sdk.usage.get().await?;
    assert_eq!((usage.emails.daily.limit, usage.emails.monthly.limit), (None, None));
    assert_eq!((usage.rate_limit.limit, usage.rate_limit.duration.as_str()), (10, "1000ms"));

    caller.resend.set_limits(Limits { daily: Some(3), monthly: Some(5), per_second: None });
    let batch = |n| json!(vec![mail("a@example.com"); n]);
    let (status, headers, _) = answer(caller.post("/emails/batch", &batch(2))).await?;
    assert_eq!((status, &headers["x-resend-daily-quota"]), (200, &"2".parse()?));

    // Two more would be one too many: none is sent, the key stays free, and one fits.
    let (status, headers, body) = answer(caller.keyed("/emails/batch", "k", &batch(2))).await?;
    assert_eq!((status, &body["name"]), (429, &json!("daily_quota_exceeded")));
    assert_eq!((&headers["ratelimit-limit"], &headers["ratelimit-reset"]), (&"10".parse()?, &"1".parse()?));
    assert!(headers.contains_key("ratelimit-remaining") && !headers.contains_key("retry-after"));
    assert_eq!(answer(caller.keyed("/emails/batch", "k", &batch(1))).await?.0, 200);
    // What was answered once is answered again, quota or not.
    assert_eq!(answer(caller.keyed("/emails/batch", "k", &batch(1))).await?.0, 200);
    // The product sees a rate limit; the usage tells that it is the quota.
    let refused = sdk.emails.send(options("a@example.com")).await;
    assert!(matches!(refused, Err(Error::RateLimit { .. })), "{refused:?}");
    let usage = sdk.usage.get().await?;
    assert_eq!((usage.emails.daily.used, usage.emails.daily.limit), (3, Some(3)));
    assert_eq!((usage.emails.monthly.sent, usage.emails.monthly.limit), (3, Some(5)));

    caller.resend.new_day();
    assert_eq!(answer(caller.post("/emails/batch", &batch(2))).await?.0, 200);
    let refused = caller.post("/emails", &mail("a@example.com"));
    assert_eq!(status_and_name(refused).await?, (429, json!("monthly_quota_exceeded")));
    assert_eq!(caller.resend.accepted_count(), 5);

    // Every address of a mail counts.
    caller.resend.set_limits(Limits { daily: Some(4), ..Limits::default() });
    let mut many = mail("a@example.com");
    many["cc"] = json!(["b@example.com", "c@example.com"]);
    assert_eq!(status_and_name(caller.post("/emails", &many)).await?.0, 429);
    Ok(())
}

#[tokio::test]
async fn requests_over_the_rate_are_told_when_to_come_back() -> Result<()> {
    let caller = Caller::new().await?;
    caller.resend.set_limits(Limits { per_second: Some(2), ..Limits::default() });
    let usage = || caller.request(reqwest::Method::GET, "/usage");
    // The second and any further request may find a little of what comes back.
    let (_, headers, body) = answer(usage()).await?;
    assert_eq!(body["rate_limit"], json!({"limit": 2, "duration": "1000ms"}));
    assert_eq!(
        (&headers["ratelimit-limit"], &headers["ratelimit-remaining"]),
        (&"2".parse()?, &"1".parse()?)
    );
    let mut limited = None;
    for _ in 0..50 {
        let request = caller.post("/emails", &mail("a@example.com"));
        if let (429, headers, body) = answer(request).await? {
            limited = Some((headers, body));
            break;
        }
    }
    let (headers, body) = limited.context("fifty requests were not too many")?;
    assert_eq!(body["name"], "rate_limit_exceeded");
    assert_eq!(headers["retry-after"], "1");

    // Obeyed, it lets through; and it was not because of the mails.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(answer(usage()).await?.0, 200);
    // Who has no key is not counted, but hears of the limit.
    let stranger = caller.client.get(format!("{}/usage", caller.resend.url())).header("user-agent", "x");
    let (status, headers, _) = answer(stranger).await?;
    assert_eq!((status, &headers["ratelimit-limit"]), (401, &"2".parse()?));
    Ok(())
}

#[tokio::test]
async fn a_key_that_may_only_send_cannot_read_the_usage() -> Result<()> {
    let caller = Caller::new().await?;
    caller.resend.faults().add(Rule::on("/usage", resend::restricted_api_key()));
    match caller.sdk()?.usage.get().await {
        Err(Error::Resend(error)) => assert_eq!(error.kind(), ErrorKind::RestrictedApiKey),
        other => panic!("{other:?}"),
    }
    Ok(())
}

#[tokio::test]
async fn very_many_mails_are_taken_without_the_emulator() -> Result<()> {
    let caller = Caller::new().await?;
    caller.resend.drop_contents();
    for batch in 0..100 {
        let mails: Vec<_> = (0..100).map(|i| mail(&format!("u{batch}.{i}@example.com"))).collect();
        let (status, _, body) =
            answer(caller.keyed("/emails/batch", &format!("b{batch}"), &json!(mails))).await?;
        assert_eq!((status, body["data"].as_array().map(Vec::len)), (200, Some(100)));
    }
    let accepted = caller.resend.accepted();
    assert_eq!(accepted.len(), 10_000);
    assert_eq!((&*accepted[9_999].mail.to[0], &accepted[0].mail.html), ("u99.99@example.com", &None));
    assert!(accepted.is_sorted_by_key(|accepted| accepted.at));
    assert!(caller.resend.faults().seen().iter().all(|seen| seen.body.is_empty()));
    assert_eq!(caller.resend.mails().await?.len(), 10_000);
    caller.resend.clear().await?;
    assert_eq!(caller.resend.accepted_count(), 0);
    // Nothing else is there.
    let list = caller.request(reqwest::Method::GET, "/emails");
    assert_eq!(status_and_name(list).await?, (404, json!("not_found")));
    Ok(())
}

fn email_event(body: &Value) -> Result<EmailEvent> {
    match try_parse_event(&body.to_string())? {
        Event::EmailEvent(event) => Ok(event),
        other => anyhow::bail!("not an event of a mail: {other:?}"),
    }
}

#[test]
fn webhooks_have_the_shape_that_the_crate_reads() -> Result<()> {
    let (id, to) = ("56761188-7520-42d8-8898-ff6fc54ce618", "a@example.com");
    let event = email_event(&webhooks::delivered(id, to))?;
    assert!(matches!(event.r#type, EmailEventType::EmailDelivered));
    assert_eq!((&*event.data.email_id, &event.data.to), (id, &vec![to.to_owned()]));
    let event = email_event(&webhooks::complained(id, to))?;
    assert!(matches!(event.r#type, EmailEventType::EmailComplained));

    for (bounce, kind) in [(Bounce::Permanent, "Permanent"), (Bounce::Transient, "Transient")] {
        let event = email_event(&webhooks::bounced(id, to, bounce, "Suppressed"))?;
        assert!(matches!(event.r#type, EmailEventType::EmailBounced));
        assert_eq!(event.data.bounce.map(|bounce| bounce.r#type).as_deref(), Some(kind));
    }
    // What the crate cannot read although Resend sends it.
    assert!(email_event(&webhooks::bounced(id, to, Bounce::Transient, "MailboxFull")).is_err());
    Ok(())
}
