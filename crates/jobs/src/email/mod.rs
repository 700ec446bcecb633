//! Mails: what they say, how they look, how each leaves exactly once.
//!
//! `facts` is what a mail is about, `render` what it looks like, `links` how it is refused; `post` works the
//! `outbox` empty through the `sender`, within its `quotas`; `feedback` is what comes back.

mod domain;
mod facts;
pub mod feedback;
pub mod links;
mod outbox;
mod post;
mod quotas;
mod render;
pub mod samples;
mod sender;

pub use self::{
    domain::Domain,
    facts::{DigestPoint, Facts, SourceTotal},
    post::{Post, PostReport},
    render::{Look, Promo, Rendered, render},
};
