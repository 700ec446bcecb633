//! A call whose answer was lost is made again: each gives its first answer, and nothing happens twice.

use anyhow::Result;
use serde_json::json;
use uuid::Uuid;

use super::{claim, imported_cents, movements, plan, rpc, settle};
use crate::world::World;

async fn integration(world: &World) -> Result<Uuid> {
    world.value("select id from public.integration_tokens").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_plan_is_the_same_run() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_a").await?;
    world.stripe_user("acct_b").await?;
    for slot in [None, Some("2026-11-22T06Z")] {
        let run = Uuid::new_v4();
        let first = rpc(&world, "jobs_plan_sync", &plan(&world, run, slot, None)).await?;
        let second = rpc(&world, "jobs_plan_sync", &plan(&world, run, slot, None)).await?;
        assert_eq!((&first["state"], &second["state"]), (&json!("planned"), &json!("repeated")));
        assert_eq!(first["plan"], second["plan"]);
        assert_eq!((&second["run_id"], &first["plan"]["items"]), (&json!(run), &json!(2)));
    }
    assert_eq!(world.value::<i64>("select count(*) from jobs.job_runs").await?, 2);
    // The second run took the items of the first over, and their messages went.
    assert_eq!(world.value::<i64>("select count(*) from pgmq.q_jobs_stripe").await?, 2);
    Ok(())
}

/// The first call still runs when it is repeated: a cut connection does not stop it.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_repeated_while_it_runs_is_the_same_run() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_a").await?;
    for slot in [None, Some("2026-11-22T06Z")] {
        let arguments = plan(&world, Uuid::new_v4(), slot, None);
        let mut held = world.pool().begin().await?;
        // Whoever plans waits here, after having opened its run.
        sqlx::query("lock table public.integration_tokens in access exclusive mode")
            .execute(&mut *held)
            .await?;
        let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' \
                       and datname = current_database() and query ilike '%jobs_plan_sync%'";
        let both = async {
            tokio::join!(rpc(&world, "jobs_plan_sync", &arguments), rpc(&world, "jobs_plan_sync", &arguments))
        };
        let release = async {
            super::until("both plans wait", async || Ok(world.value::<i64>(waiting).await? == 2)).await?;
            held.rollback().await?;
            anyhow::Ok(())
        };
        let ((one, other), released) = tokio::join!(both, release);
        released?;
        let mut states = [one?["state"].clone(), other?["state"].clone()];
        states.sort_by_key(ToString::to_string);
        assert_eq!(states, [json!("planned"), json!("repeated")], "{slot:?}");
    }
    assert_eq!(world.value::<i64>("select count(*) from jobs.job_runs").await?, 2);
    assert_eq!(world.value::<i64>("select count(*) from jobs.job_items").await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_claim_gives_the_same_items() -> Result<()> {
    let world = World::new().await?;
    for account in ["acct_a", "acct_b", "acct_c"] {
        world.stripe_user(account).await?;
    }
    rpc(&world, "jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None)).await?;
    let lease = Uuid::new_v4();
    let first = claim(&world, lease, 2).await?;
    assert_eq!((first.len(), claim(&world, lease, 2).await?), (2, first));
    assert_eq!(claim(&world, Uuid::new_v4(), 2).await?.len(), 1, "the others are free");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_settle_gives_the_first_answer() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_x").await?;
    let integration = integration(&world).await?;
    rpc(&world, "jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None)).await?;
    let lease = Uuid::new_v4();
    let item = claim(&world, lease, 1).await?.remove(0);

    // A checkpoint twice, then the end twice.
    let mut checkpoint = settle(&world, &item, lease, integration, &[("txn_1", 1_000), ("txn_2", 250)]);
    (checkpoint["p_final"], checkpoint["p_cursor"]) = (json!(false), json!({"after": "txn_2"}));
    for _ in 0..2 {
        assert_eq!(rpc(&world, "integration_settle", &checkpoint).await?, json!({"state": "stored"}));
    }
    assert_eq!(imported_cents(&world, user).await?, 0, "a checkpoint writes no totals");
    let mut end = settle(&world, &item, lease, integration, &[("txn_3", 5)]);
    end["p_chunk"] = json!(2);
    let first = rpc(&world, "integration_settle", &end).await?;
    assert_eq!((&first["state"], &first["result"]["records"]), (&json!("settled"), &json!(3)), "{first}");
    assert_eq!(rpc(&world, "integration_settle", &end).await?, first);
    assert_eq!(rpc(&world, "integration_settle", &checkpoint).await?["state"], "settled", "a late one");

    assert_eq!((movements(&world, user).await?, imported_cents(&world, user).await?), (3, 1_255));
    let logged: i64 = world.value("select count(*) from public.sync_logs where user_id is not null").await?;
    assert_eq!(logged, 1);
    assert_eq!(world.value::<i64>("select count(*) from pgmq.q_jobs_stripe").await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_give_back_is_one_attempt() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_x").await?;
    rpc(&world, "jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None)).await?;
    for attempt in 1..=5 {
        let lease = Uuid::new_v4();
        let item = claim(&world, lease, 1).await?.remove(0);
        assert_eq!(item["attempts"], attempt - 1);
        let error = json!({"code": "network", "message": "m"});
        let arguments = json!({
            "p_item_id": item["item_id"], "p_lease_id": lease, "p_delay_seconds": 0, "p_error": error,
            "p_max_attempts": 5, "p_now": world.now(),
        });
        let state = if attempt == 5 { "failed" } else { "queued" };
        let answer = json!({"state": state, "attempts": attempt});
        assert_eq!(rpc(&world, "jobs_give_back", &arguments).await?, answer);
        assert_eq!(rpc(&world, "jobs_give_back", &arguments).await?, answer);
    }
    assert!(claim(&world, Uuid::new_v4(), 1).await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_released_twice_is_free_and_untried() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_x").await?;
    rpc(&world, "jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None)).await?;
    let lease = Uuid::new_v4();
    let item = claim(&world, lease, 1).await?.remove(0)["item_id"].clone();
    let arguments = json!({"p_lane": "stripe", "p_items": [item], "p_leases": [lease], "p_delay_seconds": 0});
    assert_eq!(rpc(&world, "jobs_release", &arguments).await?, 1);
    assert_eq!(rpc(&world, "jobs_release", &arguments).await?, 1);
    let next = claim(&world, Uuid::new_v4(), 1).await?.remove(0);
    assert_eq!((&next["item_id"], &next["attempts"]), (&item, &json!(0)));
    assert_eq!(rpc(&world, "jobs_release", &arguments).await?, 0, "it is somebody else's now");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_log_is_one_row() -> Result<()> {
    let world = World::new().await?;
    let arguments = json!({
        "p_id": Uuid::new_v4(), "p_sync_type": "cron", "p_status": "success", "p_records": 1,
        "p_error": null, "p_metadata": {}, "p_now": world.now(),
    });
    for _ in 0..2 {
        rpc(&world, "jobs_log", &arguments).await?;
    }
    assert_eq!(world.value::<i64>("select count(*) from public.sync_logs").await?, 1);
    Ok(())
}

/// Who lost an item writes nothing, whatever it tries.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_lease_writes_nothing() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_x").await?;
    let integration = integration(&world).await?;
    rpc(&world, "jobs_plan_sync", &plan(&world, Uuid::new_v4(), None, None)).await?;
    let (old, new) = (Uuid::new_v4(), Uuid::new_v4());
    let item = claim(&world, old, 1).await?.remove(0);
    super::pass_visibility(&world).await?;
    assert_eq!(claim(&world, new, 1).await?.len(), 1);
    let id = &item["item_id"];
    let old_tries = async || {
        let late = settle(&world, &item, old, integration, &[("txn_late", 9_900)]);
        assert_eq!(rpc(&world, "integration_settle", &late).await?, json!({"state": "lost"}));
        let beat = json!({"p_lane": "stripe", "p_items": [id], "p_leases": [old], "p_seconds": 60});
        assert_eq!(rpc(&world, "jobs_heartbeat", &beat).await?, json!([]));
        let release = json!({"p_lane": "stripe", "p_items": [id], "p_leases": [old], "p_delay_seconds": 0});
        assert_eq!(rpc(&world, "jobs_release", &release).await?, 0);
        let error = json!({"code": "network", "message": "m"});
        let back = json!({
            "p_item_id": id, "p_lease_id": old, "p_delay_seconds": 0, "p_error": error, "p_max_attempts": 5,
            "p_now": world.now(),
        });
        assert_eq!(rpc(&world, "jobs_give_back", &back).await?["state"], "lost");
        anyhow::Ok(())
    };
    old_tries().await?;
    assert_eq!((movements(&world, user).await?, imported_cents(&world, user).await?), (0, 0));
    rpc(&world, "integration_settle", &settle(&world, &item, new, integration, &[("txn_1", 100)])).await?;
    old_tries().await?;
    assert_eq!((movements(&world, user).await?, imported_cents(&world, user).await?), (1, 100));
    assert_eq!(world.value::<i32>("select attempts from jobs.job_items").await?, 0);
    Ok(())
}
