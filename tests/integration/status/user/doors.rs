//! The same door as the status page's, and a search that keeps addresses out of every URL.

use anyhow::Result;
use uuid::Uuid;

use super::{
    super::{Browser, post},
    ask, look,
};
use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_found_by_id_or_whole_address() -> Result<()> {
    let world = World::new().await?;
    let user = world.user("camille.moreau@example.test").await?;
    let function = world.function("status").await?;
    let expected = format!("/api/status?user={user}");
    let mut browser = Browser::signed_in(&function).await?;
    for who in [user.to_string(), " Camille.Moreau@Example.TEST ".to_owned()] {
        let answer = browser.own_form(&[("action", "find"), ("who", &who)]).await?;
        assert_eq!((answer.status.as_u16(), answer.headers["location"].to_str()?), (303, expected.as_str()));
        let answer = post(&function, &[("action", "find"), ("who", &who)]).await?;
        assert_eq!(answer.headers["location"].to_str()?, expected);
    }
    let page = browser.get(&format!("?user={user}")).await?;
    assert_eq!(page.status, 200);
    assert!(page.text.contains("c…@e…") && page.text.contains(&user.to_string()), "{}", page.text);
    assert!(!page.text.contains("camille") && !page.text.contains("example.test"), "{}", page.text);
    assert!(page.text.contains("Se déconnecter") && !page.text.contains("<script"), "{}", page.text);
    for who in ["camille.moreau@example", "camille", "%", "' or true --"] {
        let answer = browser.own_form(&[("action", "find"), ("who", who)]).await?;
        assert_eq!(answer.status, 404, "{who}: {}", answer.text);
        assert!(answer.text.contains("Aucun utilisateur") && !answer.text.contains(who), "{}", answer.text);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_gets_in_and_no_address_is_part_of_a_url() -> Result<()> {
    let world = World::new().await?;
    let user = world.user("camille.moreau@example.test").await?;
    let function = world.function("status").await?;
    let url = format!("{}?user={user}", function.url());
    let stranger = function.send(jobs::http::client()?.get(&url)).await?;
    assert!(
        stranger.text.contains("type=\"password\"") && !stranger.text.contains("c…@e…"),
        "{}",
        stranger.text
    );
    let json = jobs::http::client()?.get(&url).header("accept", "application/json");
    assert_eq!(function.send(json).await?.status, 401);
    let csv = function.send(jobs::http::client()?.get(format!("{url}&csv=2026"))).await?;
    assert!(csv.text.contains("type=\"password\""), "{}", csv.text);
    let mut browser = Browser::signed_in(&function).await?;
    let answer = browser.form(&[("action", "find"), ("who", &user.to_string()), ("csrf", "x")]).await?;
    assert_eq!(answer.status, 403);

    for (query, status) in [
        (format!("user={}", Uuid::new_v4()), 404),
        ("user=camille".to_owned(), 400),
        (format!("user={user}&month=2026-13"), 400),
        (format!("user={user}&page=0"), 400),
        (format!("user={user}&csv=x"), 400),
        ("month=2026-11".to_owned(), 400),
    ] {
        let answer = ask(&function, &query, "application/json").await?;
        assert_eq!(answer.status, status, "{query}: {}", answer.text);
    }
    assert_eq!(look(&function, user, "").await?["person"]["address"], "c…@e…");
    Ok(())
}
