//! The pages of one user: their templates, filled.

use askama::Template;
use uuid::Uuid;

use super::{
    action::Done,
    said::{day, minute, some_euros, some_minute},
    wanted::Wanted,
};
use crate::{
    entry::{answer::Answer, status::page::rendered},
    operations::user::{
        facts::{Opened, PAGE, Person, UserFacts},
        money::{MonthRow, OpenMonth},
        view::UserView,
    },
    routes::Route,
    words::{counted, month_worth},
};

/// Returns the address of a user's page.
pub(super) fn page_of(user: Uuid) -> String {
    format!("{}?user={user}", Route::Status.path())
}

#[derive(Template)]
#[template(path = "status_user.html")]
struct UserPage<'a> {
    view: &'a UserView,
    facts: &'a UserFacts,
    person: &'a Person,
    month: Option<&'a OpenMonth>,
    opened: Opened,
    token: Option<&'a str>,
    notice: Option<&'a str>,
    /// The address of this page, without a month.
    here: String,
}

#[derive(Template)]
#[template(path = "status_look.html")]
struct LookPage<'a> {
    title: String,
    said: &'a [String],
    fields: Vec<(&'static str, String)>,
    token: Option<&'a str>,
    may_go_on: bool,
    back: String,
}

pub(super) fn user(view: &UserView, opened: Opened, token: Option<&str>, notice: Option<&str>) -> Answer {
    let page = UserPage {
        view,
        facts: &view.facts,
        person: &view.facts.person,
        month: view.facts.month.as_ref(),
        opened,
        token,
        notice,
        here: page_of(view.facts.person.user_id),
    };
    rendered(200, &page)
}

/// Says what an action would do, with the form that confirms it.
pub(super) fn look(wanted: &Wanted, done: &Done, token: Option<&str>) -> Answer {
    let page = LookPage {
        title: wanted.title(),
        said: &done.said,
        fields: wanted.fields(),
        token,
        may_go_on: done.may_go_on,
        back: page_of(wanted.user),
    };
    rendered(200, &page)
}

impl UserPage<'_> {
    /// The years of which there is a file of receipts, the latest first.
    fn years(&self) -> Vec<i32> {
        let mut years: Vec<i32> = self.facts.months().iter().map(|row| row.month.year()).collect();
        years.dedup();
        years
    }

    /// Returns the address of another page of the opened month, which people count from 1.
    fn page(&self, month: &OpenMonth, page: u32) -> String {
        let only = if self.opened.uncounted { "&only=uncounted" } else { "" };
        format!("{}&month={}{only}&page={page}#mois", self.here, month.month)
    }

    fn previous(&self, month: &OpenMonth) -> String {
        self.page(month, self.view.page)
    }

    fn next(&self, month: &OpenMonth) -> String {
        self.page(month, self.view.page + 2)
    }

    /// Writes "101 à 200 sur 2000".
    fn range(&self, month: &OpenMonth) -> String {
        let first = u64::from(self.view.page) * u64::from(PAGE) + 1;
        format!("{first} à {} sur {}", first + month.movements.len() as u64 - 1, month.movements_total)
    }

    fn is_open(&self, row: &MonthRow) -> bool {
        self.month.is_some_and(|month| month.month == row.month)
    }
}
