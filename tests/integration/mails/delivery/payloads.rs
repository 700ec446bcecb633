//! What goes to the mail service: both parts, one-click unsubscribing, a key; no batch of two kinds.

use anyhow::{Context, Result};
use serde_json::Value;

use super::{add, drain, key, plan, requests, world_of};

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_as_the_service_gets_it() -> Result<()> {
    let world = world_of(2).await?;
    let run = plan(&world).await?;
    for kind in ["monthly_recap", "monthly_reminder", "threshold_alert"] {
        add(&world, run, kind, &format!("{kind}@example.test")).await?;
    }
    drain(&world).await?;
    let requests = requests(&world);
    assert_eq!(requests.len(), 4, "a batch holds one kind");
    for request in &requests {
        assert!(key(request).starts_with("comptalyze-jobs/"), "{}", key(request));
        assert_eq!(request.headers["x-batch-validation"], "permissive");
        for mail in serde_json::from_str::<Vec<Value>>(&request.body)? {
            let to = mail["to"][0].as_str().context("an address")?;
            assert_eq!(mail["to"].as_array().map(Vec::len), Some(1), "nobody sees another's address");
            assert_eq!(mail["from"], world.var("COMPANY_FROM_EMAIL"), "{to}");
            for part in ["subject", "html", "text"] {
                assert!(mail[part].as_str().is_some_and(|text| !text.trim().is_empty()), "{to}: {part}");
            }
            let headers = &mail["headers"];
            if to.starts_with("threshold_alert") {
                assert!(headers.get("List-Unsubscribe").is_none(), "{headers}");
                continue;
            }
            let link = headers["List-Unsubscribe"].as_str().context("a link")?;
            let link =
                link.strip_prefix('<').and_then(|link| link.strip_suffix('>')).context("in brackets")?;
            assert!(link.starts_with("https://jobs.comptalyze.example/api/unsubscribe?"), "{link}");
            assert_eq!(headers["List-Unsubscribe-Post"], "List-Unsubscribe=One-Click", "{to}");
            assert!(
                mail["text"].as_str().is_some_and(|text| text.contains(link)),
                "{to}: the same link inside"
            );
        }
    }
    Ok(())
}
