//! The four kinds of mail, most urgent first.

use anyhow::Result;
use serde_json::json;

use super::{add, drain, plan, recipients, world_of};

#[tokio::test(flavor = "multi_thread")]
async fn the_urgent_kinds_leave_first() -> Result<()> {
    let world = world_of(3).await?;
    let run = plan(&world).await?;
    // The other way round, and a late alert behind everything.
    for n in 0..3 {
        for kind in ["monthly_recap", "monthly_reminder", "threshold_alert"] {
            add(&world, run, kind, &format!("{kind}-{n}@example.test")).await?;
        }
    }
    let part = drain(&world).await?;
    // Recaps are told apart.
    let sent = (&part["sent"], &part["recaps"]["sent"], &part["errors"]);
    assert_eq!(sent, (&json!(9), &json!(3), &json!(0)), "{part}");
    let order: Vec<String> = recipients(&world)
        .into_iter()
        .map(|to| to.split('-').next().unwrap_or_default().to_owned())
        .collect();
    let expected: Vec<&str> = ["threshold_alert", "monthly_reminder", "monthly_recap", "user"]
        .into_iter()
        .flat_map(|kind| [kind; 3])
        .collect();
    assert_eq!(order, expected);
    Ok(())
}
