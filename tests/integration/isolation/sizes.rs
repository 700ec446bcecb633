//! Very many rows and activities of one user.

use anyhow::Result;

use super::{assert_all_served, busy_user, run_every_route, sound_users, write};
use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn very_many_rows_of_one_user_cost_nobody_else_anything() -> Result<()> {
    let mut world = World::new().await?;
    let sound = sound_users(&world).await?;
    for (n, rows) in [
        "2026, 11, 'activity ' || n, 1 from generate_series(1, 120000) n",
        "2026, 11, 'Prestation de services', 1 from generate_series(1, 120000) n",
        "n, 1, 'Prestation de services', 9999999999.99 from generate_series(1970, 20000) n",
        "2026, 11, 'activity ' || n || repeat('x', 100000), 1000 from generate_series(1, 300) n",
        "2026, 11, 'Prestation de services', case n when 1 then 'NaN' else 9999999999.99 end from generate_series(1, 20000) n",
    ]
    .into_iter()
    .enumerate()
    {
        let user = busy_user(&world, &format!("many{n}"), true).await?;
        let sql = format!(
            "insert into public.ca_records (user_id, year, month, activity_type, amount_eur) select '{user}', {rows}"
        );
        write(&world, sql).await?;
    }
    run_every_route(&mut world).await?;
    assert_all_served(&world, &sound).await
}
