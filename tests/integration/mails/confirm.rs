//! The link with which a user says whether typed and imported turnover is the same money: what the page shows, what its
//! buttons change, and what the books, the thresholds and the mails make of it.

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::faults::{Fault, Rule};
use uuid::Uuid;

use super::given::{
    about, at, confirm_query, mail_to, says, says_not, second_of_next_month, text, turnover,
    unsubscribe_query, visit,
};
use crate::world::World;

const FORM: &str = "application/x-www-form-urlencoded";
const SERVICES: &str = "Prestation de services";

/// Returns a Premium user with typed and imported services in each month of the year before the reminder's day, and the query of
/// the link that their reminder has.
async fn with_both_sides(world: &mut World) -> Result<(Uuid, String)> {
    world.set_now(at("2026-11-18T10:20:00Z"));
    second_of_next_month(world);
    let user = world.user("camille@example.test").await?;
    for sql in [
        "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')",
        "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)",
    ] {
        about(world, user, sql).await?;
    }
    for month in 1..=11 {
        let month = format!("2026-{month:02}");
        turnover(world, user, &month, SERVICES, "2500", "manual").await?;
        turnover(world, user, &month, SERVICES, "1500", "auto_sync").await?;
    }
    // A month with one side only asks nothing.
    turnover(world, user, "2026-12", SERVICES, "10", "manual").await?;
    world.cron("send-reminders", "").await?;
    let mail = mail_to(world, "camille@example.test");
    says(
        &text(&mail),
        &[
            "Attention au double compte",
            "vous avez saisi 2 500,00 € et Comptalyze a importé 1 500,00 €",
            "En octobre 2026, vos enregistrements contiennent à la fois des saisies et des imports",
        ],
    );
    world.resend.clear().await?;
    Ok((user, confirm_query(&mail)))
}

/// Returns the year as the thresholds see it: typed and imported euros, and how many months are in doubt.
async fn books(world: &World, user: Uuid) -> Result<(i64, i64, i64)> {
    Ok(sqlx::query_as(
        "select sum((s ->> 'typed')::bigint)::bigint / 100, sum((s ->> 'imported')::bigint)::bigint / 100, \
         (select count(distinct r -> 'month') from jsonb_array_elements(b.years -> 0 -> 'rows') r where r -> 'mixed' = 'true') \
         from jobs.books(array[$1]::uuid[], 2026, 2026) b, jsonb_array_elements(b.years -> 0 -> 'sums') s \
         group by b.years",
    )
    .bind(user)
    .fetch_one(world.pool())
    .await?)
}

async fn answers(world: &World) -> Result<Value> {
    world
        .value(
            "select coalesce(jsonb_agg(jsonb_build_array(month, verdict) order by month nulls first), '[]') \
             from jobs.book_confirmations",
        )
        .await
}

async fn marks(world: &World) -> Result<i64> {
    world.value("select count(*) from jobs.threshold_checks_due").await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_click_settles_every_month_and_another_takes_it_back() -> Result<()> {
    let mut world = World::new().await?;
    let (user, query) = with_both_sides(&mut world).await?;
    let function = world.function("confirm").await?;
    let open = (27_510, 16_500, 11);
    assert_eq!(books(&world, user).await?, open);

    let page = visit(&function, Method::GET, &query, None).await?;
    assert_eq!(page.status, 200, "{}", page.text);
    says(
        &page.text,
        &[
            "<html lang=\"fr\">",
            "S’agit-il des mêmes encaissements",
            "En 2026, les mois ci-dessous contiennent",
            "novembre 2026",
            "2 500,00 €",
            "1 500,00 €",
            "<option value=\"\">tous les mois</option>",
            "comprend ceux à venir",
        ],
    );
    assert_eq!(page.text.matches("<button").count(), 2);
    assert_eq!(page.text.matches("<li>").count(), 11);
    says_not(&page.text, &["camille", "<script", &user.to_string(), "Retirer", "décembre"]);
    let policy = page.headers["content-security-policy"].to_str()?;
    says(policy, &["default-src 'none'", "form-action 'self'", "frame-ancestors 'none'"]);
    assert_eq!(page.headers["cache-control"], "no-store");
    let head = visit(&function, Method::HEAD, &query, None).await?;
    assert!(head.status.is_success() && head.text.is_empty());
    assert_eq!((answers(&world).await?, marks(&world).await?), (json!([]), 0), "looking changes nothing");

    for _ in 0..2 {
        let page = visit(&function, Method::POST, &query, Some((FORM, "month=&verdict=distinct"))).await?;
        assert_eq!(page.status, 200, "{}", page.text);
        says(
            &page.text,
            &["C’est noté", "Les deux comptent", "Retirer ma réponse", "prochaine vérification"],
        );
        assert_eq!(answers(&world).await?, json!([[null, "distinct"]]));
        assert_eq!((books(&world, user).await?, marks(&world).await?), ((27_510, 16_500, 0), 1));
    }
    let page = visit(&function, Method::GET, &query, None).await?;
    says(
        &page.text,
        &["Votre réponse du 2 décembre 2026, pour tous les mois : ce sont des encaissements distincts"],
    );

    world.run("delete from jobs.threshold_checks_due").await?;
    visit(&function, Method::POST, &query, Some((FORM, "month=&verdict=same"))).await?;
    assert_eq!(answers(&world).await?, json!([[null, "same"]]));
    assert_eq!((books(&world, user).await?, marks(&world).await?), ((27_510, 0, 0), 1));
    let page = visit(&function, Method::POST, &query, Some((FORM, "month=&verdict=none"))).await?;
    says(&page.text, &["C’est noté", "Vos réponses sont retirées"]);
    assert_eq!((answers(&world).await?, books(&world, user).await?), (json!([]), open));
    // Where there is no answer, none is taken back.
    for (body, words) in [
        ("month=&verdict=none", "Aucune réponse n’est enregistrée."),
        ("month=2026-11&verdict=none", "Aucune réponse n’est enregistrée pour novembre"),
    ] {
        let page = visit(&function, Method::POST, &query, Some((FORM, body))).await?;
        says(&page.text, &["Il n’y avait rien à retirer", words]);
        says_not(&page.text, &["retirée", "C’est noté", "prochaine vérification"]);
    }
    visit(&function, Method::POST, &query, Some((FORM, "month=&verdict=same"))).await?;
    let page = visit(&function, Method::POST, &query, Some((FORM, "month=2026-11&verdict=none"))).await?;
    says(&page.text, &["Il n’y avait rien à retirer", "Pour retirer celle qui vaut pour tous les mois"]);
    assert_eq!(answers(&world).await?, json!([[null, "same"]]));
    Ok(())
}

/// Books that cannot be read are no books without a month.
/// A doubt about the year before is settled by the link of the alert that names it.
#[tokio::test(flavor = "multi_thread")]
async fn a_doubt_about_the_year_before_can_be_settled() -> Result<()> {
    let mut world = World::new().await?;
    world.set_now(at("2026-11-18T10:20:00Z"));
    let user = world.user("camille@example.test").await?;
    for (month, euros, source) in [
        ("2025-01", "100", "manual"),
        ("2025-05", "30000", "manual"),
        ("2025-05", "10000", "auto_sync"),
        ("2026-03", "31000", "manual"),
    ] {
        turnover(&world, user, month, SERVICES, euros, source).await?;
    }
    assert_eq!(world.post("check-thresholds", "").await?["sent"], 1);
    let mail = mail_to(&world, "camille@example.test");
    says(
        &text(&mail),
        &[
            "Si vos saisies et vos importations sont des encaissements distincts, vous êtes redevable de la TVA depuis le \
             1er janvier 2026",
            "Si ce sont les mêmes, le seuil n’est pas dépassé",
        ],
    );
    let (function, query) = (world.function("confirm").await?, confirm_query(&mail));
    let page = visit(&function, Method::GET, &query, None).await?;
    says(&page.text, &["En 2025, le mois ci-dessous contient", "mai 2025", "30 000,00 €", "10 000,00 €"]);
    visit(&function, Method::POST, &query, Some((FORM, "month=2025-05&verdict=distinct"))).await?;
    world.resend.clear().await?;
    assert_eq!(world.post("check-thresholds", "").await?["sent"], 1);
    let certain = text(&mail_to(&world, "camille@example.test"));
    says(&certain, &["Vous êtes redevable de la TVA depuis le 1er janvier 2026"]);
    says_not(&certain, &["distincts", "/api/confirm"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_books_are_said() -> Result<()> {
    let mut world = World::new().await?;
    let (user, query) = with_both_sides(&mut world).await?;
    let function = world.function("confirm").await?;
    let break_it = "update public.ca_records set amount_eur = 'NaN' \
                    where user_id = $1 and source = 'manual' and month = 11";
    about(&world, user, break_it).await?;
    let page = visit(&function, Method::GET, &query, None).await?;
    says(&page.text, &["Vos enregistrements ne peuvent pas être lus", "est illisible", "rouvrez ce lien"]);
    says_not(&page.text, &["Aucun mois", "Rien à confirmer", "<form"]);
    // An answer for every month is noted all the same, and may be taken back.
    let page = visit(&function, Method::POST, &query, Some((FORM, "month=&verdict=distinct"))).await?;
    says(&page.text, &["C’est noté", "est illisible", "Retirer ma réponse"]);
    Ok(())
}

/// One month may be otherwise; an answer for every month stands in the place of all.
#[tokio::test(flavor = "multi_thread")]
async fn a_month_may_have_an_answer_of_its_own() -> Result<()> {
    let mut world = World::new().await?;
    let (user, query) = with_both_sides(&mut world).await?;
    // Imported more than typed: then the imported side counts. A month with a refund has nothing twice.
    about(&world, user, "update public.ca_records set amount_eur = 4000 where user_id = $1 and month = 10 and source = 'auto_sync'").await?;
    about(&world, user, "update public.ca_records set amount_eur = -100 where user_id = $1 and month = 9 and source = 'auto_sync'").await?;
    let function = world.function("confirm").await?;
    let post = async |body: &str| visit(&function, Method::POST, &query, Some((FORM, body))).await;
    let page = post("month=2026-10&verdict=same").await?;
    says(&page.text, &["Pour octobre 2026, seul le plus élevé", "Votre réponse pour ce mois"]);
    assert_eq!(books(&world, user).await?, (25_010, 17_400, 9));
    post("month=2026-09&verdict=same").await?;
    assert_eq!(books(&world, user).await?, (25_010, 17_400, 9), "a refund is in nothing twice");
    post("month=2026-10&verdict=none").await?;
    assert_eq!(answers(&world).await?, json!([["2026-09-01", "same"]]));
    post("month=2026-10&verdict=same").await?;
    post("month=2026-11&verdict=distinct").await?;
    assert_eq!(books(&world, user).await?.2, 8);
    post("month=&verdict=distinct").await?;
    assert_eq!(answers(&world).await?, json!([[null, "distinct"]]));
    post("month=2026-10&verdict=same").await?;
    assert_eq!(answers(&world).await?, json!([[null, "distinct"], ["2026-10-01", "same"]]));
    assert_eq!(books(&world, user).await?, (25_010, 17_400, 0));
    post("month=&verdict=none").await?;
    assert_eq!(answers(&world).await?, json!([]));
    Ok(())
}

/// What a month has of the same money counts once in what there is to declare; the mail repeats the answer.
#[tokio::test(flavor = "multi_thread")]
async fn the_reminder_follows_the_answer() -> Result<()> {
    let mut world = World::new().await?;
    let (_, query) = with_both_sides(&mut world).await?;
    let function = world.function("confirm").await?;
    for (verdict, expected) in [
        (
            "same",
            [
                "Déjà enregistré pour novembre 2026 : 2 500,00 €",
                "Prestations de services : 2 500 €",
                "Prestations de services : 5 000 €",
                "ce sont les mêmes encaissements",
                "Modifier ma réponse",
            ],
        ),
        (
            "distinct",
            [
                "Déjà enregistré pour novembre 2026 : 4 000,00 €",
                "Prestations de services : 4 000 €",
                "Prestations de services : 8 000 €",
                "ces encaissements sont distincts",
                "Modifier ma réponse",
            ],
        ),
    ] {
        visit(&function, Method::POST, &query, Some((FORM, &format!("month=&verdict={verdict}")))).await?;
        world.run("delete from jobs.job_slots").await?;
        world.run("delete from jobs.email_deliveries").await?;
        world.cron("send-reminders", "").await?;
        let french = text(&mail_to(&world, "camille@example.test"));
        says(&french, &expected);
        says_not(&french, &["double compte", "deux fois"]);
        world.resend.clear().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_have_not_signed_or_do_not_offer_changes_nothing() -> Result<()> {
    let mut world = World::new().await?;
    let (user, query) = with_both_sides(&mut world).await?;
    let other = world.user("other@example.test").await?;
    world.run("delete from jobs.job_slots").await?;
    world.run("delete from jobs.email_deliveries").await?;
    world.cron("send-reminders", "").await?;
    let unsubscribe = unsubscribe_query(&mail_to(&world, "camille@example.test"));
    let function = world.function("confirm").await?;
    world.environment.gateway.faults().forget();
    let forged = [
        String::new(),
        "t=".to_owned(),
        unsubscribe,
        query[..query.len() - 3].to_owned(),
        query.replace(&user.to_string(), &other.to_string()),
        query.replace(".2026.", ".2027."),
        query.replace("t=1.", "t=2."),
        "t=%3Cscript%3Ealert(1)%3C/script%3E".to_owned(),
    ];
    for query in &forged {
        for (method, body) in [(Method::GET, None), (Method::POST, Some((FORM, "month=&verdict=same")))] {
            let page = visit(&function, method, query, body).await?;
            assert_eq!(page.status, 400, "{query}");
            says(&page.text, &["Ce lien n’est pas valable"]);
            says_not(&page.text, &["<form", "<script", "camille", &user.to_string()]);
        }
    }
    for body in [
        "",
        "verdict=same",
        "month=",
        "month=&verdict=both",
        "month=2025-11&verdict=same",
        "month=2026-13&verdict=same",
        "List-Unsubscribe=One-Click",
    ] {
        let page = visit(&function, Method::POST, &query, Some((FORM, body))).await?;
        assert_eq!(page.status, 400, "{body}");
        says(&page.text, &["Cette réponse n’est pas complète", "Rien n’a été changé"]);
    }
    for method in [Method::PUT, Method::DELETE, Method::PATCH] {
        assert_eq!(visit(&function, method.clone(), &query, None).await?.status, 405, "{method}");
    }
    assert!(world.environment.gateway.faults().seen().is_empty(), "none of it reaches the database");
    assert_eq!((answers(&world).await?, marks(&world).await?), (json!([]), 0));
    says_not(&function.log(), &[query.rsplit_once('.').map_or("", |(_, signature)| signature), "camille"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_said_and_a_lost_answer_is_asked_again() -> Result<()> {
    let mut world = World::new().await?;
    let (user, query) = with_both_sides(&mut world).await?;
    world.set("JOB_BUDGET_SECONDS", "1");
    let function = world.function("confirm").await?;
    let gateway = world.environment.gateway.faults();
    for (method, body) in [(Method::GET, None), (Method::POST, Some((FORM, "month=&verdict=same")))] {
        gateway.add(Rule::on("jobs_confirm", Fault::json(503, &json!({"message": "secret detail"}))));
        let page = visit(&function, method, &query, body).await?;
        assert_eq!(page.status, 503, "{}", page.text);
        says(&page.text, &["le même lien", "il reste valable"]);
        says_not(&page.text, &["secret detail", "camille"]);
        gateway.clear();
    }
    assert_eq!(answers(&world).await?, json!([]));
    gateway.forget();
    gateway.add(Rule::on("jobs_confirm_books", Fault::CutAfter).times(1));
    let page = visit(&function, Method::POST, &query, Some((FORM, "month=&verdict=same"))).await?;
    assert_eq!((page.status.as_u16(), gateway.count("jobs_confirm_books")), (200, 2), "{}", page.text);
    assert_eq!(answers(&world).await?, json!([[null, "same"]]));

    // Whoever has gone leaves nothing behind, and gets no error.
    about(&world, user, "delete from auth.users where id = $1").await?;
    assert_eq!(answers(&world).await?, json!([]));
    let page = visit(&function, Method::POST, &query, Some((FORM, "month=&verdict=same"))).await?;
    assert_eq!(page.status, 200);
    says(&page.text, &["Aucun mois de 2026"]);
    assert_eq!((answers(&world).await?, marks(&world).await?), (json!([]), 0));
    Ok(())
}
