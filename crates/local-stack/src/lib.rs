//! This crate is the developer's tools over the stand-ins: the demonstration, the benchmark, the doctor, the previews
//! of mails and pages, and the sample users that they and the tests work on. Never deployed.

pub mod bench;
pub mod demo;
pub mod doctor;
pub mod mails;
pub mod seed;
pub mod status_page;
