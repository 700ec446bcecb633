//! Mails: what they say, how they look, how each leaves exactly once.
//!
//! `facts` is what a mail is about, `render` what it looks like, `links` how it is refused; `post` works the
//! `outbox` empty through the `sender`, at the `pace` that the mail service allows; `feedback` is what comes back.

mod domain;
mod facts;
pub mod feedback;
pub mod links;
mod outbox;
mod pace;
mod post;
mod render;
pub mod samples;
mod sender;

pub use self::{
    domain::Domain,
    facts::{DigestPoint, Facts, Kind, SourceTotal},
    post::{Post, PostReport},
    render::{Look, Promo, Rendered, render},
};
