//! Our copies of the platform's and the application's SQL say the same as the originals, where these are at
//! hand: next to the repository, in `../shared/schema`.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use processes::{
    database::{Database, Template, apply, make_templates},
    npm,
    postgres::Cluster,
};
use sqlx::PgPool;

/// Lists everything that can differ, one line each.
const CATALOGUE: &str = "
with ours as (select oid from pg_namespace where nspname in ('public', 'auth'))
select line collate \"C\" from (
    select format('role %s: login %s, inherit %s, super %s, bypassrls %s, createrole %s, member of %s, settings %s',
        r.rolname, r.rolcanlogin, r.rolinherit, r.rolsuper, r.rolbypassrls, r.rolcreaterole,
        (select array_agg(m.roleid::regrole::text order by 1) from pg_auth_members m where m.member = r.oid),
        (select array_agg(s.setconfig order by s.setdatabase) from pg_db_role_setting s where s.setrole = r.oid)) as line
    from pg_roles r where r.rolname !~ '^pg_'
  union all
    select format('schema %s: %s', nspname, nspacl) from pg_namespace where oid in (select oid from ours)
  union all
    select format('default privileges %s %s: %s', defaclnamespace::regnamespace, defaclobjtype, defaclacl)
    from pg_default_acl where defaclnamespace in (select oid from ours)
  union all
    select format('relation %s: kind %s, rls %s, forced %s, %s', oid::regclass, relkind, relrowsecurity, relforcerowsecurity, relacl)
    from pg_class where relnamespace in (select oid from ours) and relkind in ('r', 'v', 'm', 'S', 'p')
  union all
    select format('column %s.%s: #%s %s, not null %s, default %s, identity %s, %s', c.oid::regclass, a.attname, a.attnum,
        format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attacl)
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
    where c.relnamespace in (select oid from ours) and c.relkind in ('r', 'v', 'm', 'p')
  union all
    select format('constraint %s on %s: %s', conname, conrelid::regclass, pg_get_constraintdef(oid))
    from pg_constraint where connamespace in (select oid from ours)
  union all
    select format('index %s', indexdef) from pg_indexes where schemaname in ('public', 'auth')
  union all
    select format('policy %s on %s.%s: %s %s %s, using %s, check %s', policyname, schemaname, tablename, permissive, roles, cmd, qual, with_check)
    from pg_policies
  union all
    select format('trigger %s', pg_get_triggerdef(t.oid)) from pg_trigger t join pg_class c on c.oid = t.tgrelid
    where c.relnamespace in (select oid from ours) and not t.tgisinternal
  union all
    select format('function %s, %s', regexp_replace(pg_get_functiondef(oid), '\\s+', ' ', 'g'), proacl)
    from pg_proc where pronamespace in (select oid from ours)
) as lines order by 1";

async fn catalogue(pool: &PgPool) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(CATALOGUE).fetch_all(pool).await?)
}

#[tokio::test]
async fn our_copies_of_the_sql_are_faithful() -> Result<()> {
    let originals = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/schema");
    if !originals.is_dir() {
        // Only a checkout of the repository: nothing to compare with.
        return Ok(());
    }
    let parts = npm::install(&npm::STACK)?;
    // Two clusters, because roles belong to all databases of one.
    let (our_cluster, their_cluster) = tokio::try_join!(Cluster::start(&parts), Cluster::start(&parts))?;
    make_templates(&our_cluster).await?;
    let ours = Database::create(&our_cluster, Template::Application).await?;
    let theirs = PgPool::connect_with(their_cluster.options("postgres")).await?;
    let mut files: Vec<_> =
        fs::read_dir(&originals)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "sql")) {
        let sql = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        apply(&theirs, &file.to_string_lossy(), &sql).await?;
    }

    let (ours, theirs) = (catalogue(ours.pool()).await?, catalogue(&theirs).await?);
    assert!(theirs.len() > 100, "the catalogue is not read: {theirs:#?}");
    let missing: Vec<_> = theirs.iter().filter(|line| !ours.contains(line)).collect();
    let added: Vec<_> = ours.iter().filter(|line| !theirs.contains(line)).collect();
    assert!(missing.is_empty() && added.is_empty(), "missing: {missing:#?}\nadded: {added:#?}");
    Ok(())
}
