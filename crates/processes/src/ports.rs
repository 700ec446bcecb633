//! Finds free ports of the loopback interface, for servers that cannot be told to pick one themselves.
//!
//! They lie below the range from which the kernel takes the local ports of outgoing connections, so that a
//! server finds its own port free when it is restarted. Another process can still be faster: whoever uses such
//! a port checks that the right server answers, and tries another one when it does not.

use std::{
    net::TcpListener,
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
};

use anyhow::{Context, Result};

const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// Says how often a server is given another port before its failure is believed.
pub const ATTEMPTS: usize = 5;

/// Each process starts somewhere else, and never hands out the same port twice in a row.
static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
    AtomicU16::new(u16::try_from(uuid::Uuid::new_v4().as_u128() % u128::from(COUNT)).unwrap_or(0))
});

/// Returns a port of 127.0.0.1 on which nobody listens.
pub fn free() -> Result<u16> {
    (0..COUNT)
        .map(|_| FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .with_context(|| format!("no free port between {FIRST} and {}", FIRST + COUNT))
}
