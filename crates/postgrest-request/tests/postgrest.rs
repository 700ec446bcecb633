//! Tests `postgrest`, as it is published, on top of this crate.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use postgrest::Postgrest;
use reqwest::{Error, Method};

#[test]
fn a_call_of_a_function_is_assembled() {
    let client = Postgrest::new("https://ref.supabase.co/rest/v1").insert_header("apikey", "key");
    let request = client.rpc("add", r#"{"a":1}"#).build().build().unwrap();
    assert_eq!(request.method(), Method::POST);
    assert_eq!(request.url().as_str(), "https://ref.supabase.co/rest/v1/rpc/add");
    assert_eq!(request.headers()["apikey"], "key");
    assert_eq!(request.headers()["content-type"], "application/json");
    assert_eq!(request.headers()["accept"], "application/json");
    assert_eq!(request.body(), br#"{"a":1}"#);
}

#[test]
fn a_query_is_encoded() {
    let request = Postgrest::new("http://localhost").from("rows").select("a").eq("name", "Aé &+b").build();
    let request = request.build().unwrap();
    assert_eq!(request.method(), Method::GET);
    assert_eq!(request.url().as_str(), "http://localhost/rows?select=a&name=eq.A%C3%A9+%26%2Bb");
}

#[test]
fn an_address_that_is_none_is_an_error() {
    let built = Postgrest::new("nowhere").rpc("add", "").build().build();
    assert!(matches!(built, Err(Error::Address(_))), "{built:?}");
}

#[test]
fn nothing_is_sent() {
    let sent = pin!(Postgrest::new("http://localhost").rpc("add", "").execute());
    let Poll::Ready(answer) = sent.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("it waits for something")
    };
    assert_eq!(answer.err(), Some(Error::NoClient));
}
