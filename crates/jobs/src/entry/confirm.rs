//! `/api/confirm`: whoever holds a mail's link says whether what was typed and what was imported for a month is the same
//! money, for one month or for every month, and may take it back on the same page.
//!
//! `GET` shows the months of the link's year that have both, and changes nothing. `POST` writes the answer down, again and
//! again with the same result, and shows what holds now.

use std::borrow::Cow;

use askama::Template;
use chrono::{DateTime, Utc};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;
use vercel_runtime::Error;

use super::{
    answer::Answer,
    app::App,
    form::Form,
    link_page::{app_url, follow, other_method, page, trouble},
};
use crate::{
    config::Config,
    email::{BooksVerdict, links},
    money::{Currency, MinorAmount},
    schedule::{Month, paris},
    supabase::SupabaseError,
    tasks::Context,
};

/// Holds what the database answers, before and after.
#[derive(Deserialize)]
struct Confirmations {
    /// Is the answer for every month that has none of its own.
    every: Option<ForEveryMonth>,
    months: Vec<MixedMonth>,
    /// Says that no amount of the year keeps months back, because nobody can read it.
    is_readable: bool,
    /// Counts the answers that this call has taken away.
    #[serde(default)]
    withdrawn: u32,
}

/// Represents an answer for every month.
#[derive(Deserialize)]
struct ForEveryMonth {
    verdict: BooksVerdict,
    at: DateTime<Utc>,
}

/// Represents a month with both typed and imported rows; amounts are cents.
#[derive(Deserialize)]
struct MixedMonth {
    month: Month,
    typed: i64,
    imported: i64,
    /// Says what holds for the month.
    verdict: Option<BooksVerdict>,
    /// Says that the answer is about this month alone.
    is_own: bool,
}

/// Represents what somebody has answered.
#[derive(Clone, Copy)]
struct Said {
    /// Is `None` for every month, those to come too.
    month: Option<Month>,
    /// Is `None` where an answer is withdrawn.
    verdict: Option<BooksVerdict>,
}

#[derive(Template)]
#[template(path = "confirm.html")]
struct Page<'a> {
    title: &'a str,
    paragraphs: Vec<Cow<'a, str>>,
    months: Vec<MonthLine>,
    has_form: bool,
    has_answer: bool,
    app_url: &'a str,
}

/// Represents a month, in words.
struct MonthLine {
    key: String,
    name: String,
    typed: String,
    imported: String,
    answer: Option<&'static str>,
}

/// Answers a request. It brings no secret: the link in its query is signed.
pub(super) async fn answer<B>(
    app: &App,
    method: &str,
    query: &str,
    body: B,
    now: DateTime<Utc>,
    begun: Instant,
) -> Answer
where
    B: BodyExt,
    B::Error: Into<Error>,
{
    if let Some(answer) = other_method(app, method) {
        return answer;
    }
    let (user, year) = match follow(&app.config, query, links::read_confirm) {
        Ok(link) => link,
        Err(answer) => return answer,
    };
    let said = if method == "POST" {
        match Form::read(body).await.and_then(|form| Said::of(&form, year)) {
            Some(said) => Some(said),
            None => return not_understood(&app.config),
        }
    } else {
        None
    };
    let Ok(context) = app.context(now, begun) else { return trouble(&app.config, 500) };
    match confirmations(&context, user, year, said, now).await {
        Ok(found) => shown(&app.config, year, said, &found),
        Err(error) if error.is_configuration() => trouble(&app.config, 500),
        Err(_) => trouble(&app.config, 503),
    }
}

impl Said {
    /// Reads what the form says; returns `None` for something that our page does not offer.
    fn of(form: &Form, year: i32) -> Option<Self> {
        let verdict = match form.value("verdict")? {
            "distinct" => Some(BooksVerdict::Distinct),
            "same" => Some(BooksVerdict::Same),
            "none" => None,
            _ => return None,
        };
        let month = match form.value("month")? {
            "" => None,
            month => Some(month.parse::<Month>().ok().filter(|month| month.year() == year)?),
        };
        Some(Self { month, verdict })
    }

    /// Returns whether it takes an answer back where there was none.
    fn is_void(self, found: &Confirmations) -> bool {
        self.verdict.is_none() && found.withdrawn == 0
    }

    /// Says what was noted.
    fn words(self, found: &Confirmations) -> String {
        let months = self.month.map_or_else(|| "tous les mois, y compris à venir".to_owned(), paris_month);
        match self.verdict {
            None if self.is_void(found) => match (self.month, &found.every) {
                (None, _) => "Aucune réponse n’est enregistrée.".to_owned(),
                (Some(_), None) => format!("Aucune réponse n’est enregistrée pour {months}."),
                (Some(_), Some(_)) => format!(
                    "Aucune réponse n’est enregistrée pour {months} seul. Pour retirer celle qui vaut pour tous les mois, \
                     choisissez «\u{a0}tous les mois\u{a0}»."
                ),
            },
            Some(BooksVerdict::Distinct) => {
                format!("Pour {months}, ce que vous saisissez et ce que nous importons comptent tous deux.")
            }
            Some(BooksVerdict::Same) => {
                format!("Pour {months}, seul le plus élevé des deux montants compte.")
            }
            None if self.month.is_none() => "Vos réponses sont retirées.".to_owned(),
            None => format!("Votre réponse pour {months} est retirée."),
        }
    }
}

/// Reads what a user has confirmed, or writes it down first.
async fn confirmations(
    context: &Context,
    user: Uuid,
    year: i32,
    said: Option<Said>,
    now: DateTime<Utc>,
) -> Result<Confirmations, SupabaseError> {
    match said {
        None => {
            let arguments = json!({"p_user_id": user, "p_year": year});
            context.supabase.rpc("jobs_confirmations", &arguments, &context.deadline).await
        }
        Some(said) => {
            let month = said.month.map(Month::first_day);
            let arguments = json!({
                "p_user_id": user, "p_year": year, "p_month": month, "p_verdict": said.verdict, "p_now": now,
            });
            context.supabase.rpc("jobs_confirm_books", &arguments, &context.deadline).await
        }
    }
}

/// Shows the page, before an answer and after one.
fn shown(config: &Config, year: i32, said: Option<Said>, found: &Confirmations) -> Answer {
    let has_answer = found.every.is_some() || found.months.iter().any(|month| month.verdict.is_some());
    let is_empty = found.months.is_empty();
    let title = match said {
        Some(said) if said.is_void(found) => "Il n’y avait rien à retirer".into(),
        Some(_) => "C’est noté".into(),
        None if is_empty && !found.is_readable => "Vos enregistrements ne peuvent pas être lus".into(),
        None if is_empty && !has_answer => format!("Rien à confirmer pour {year}").into(),
        None => Cow::from("S’agit-il des mêmes encaissements ?"),
    };
    let mut paragraphs: Vec<Cow<str>> = Vec::new();
    if let Some(said) = said {
        paragraphs.push(said.words(found).into());
    }
    if said.is_some_and(|said| !said.is_void(found)) {
        paragraphs.push("Vos alertes de seuil en tiennent compte dès la prochaine vérification.".into());
    } else if let Some(every) = found.every.as_ref().filter(|_| said.is_none()) {
        paragraphs.push(
            format!(
                "Votre réponse du {}, pour tous les mois : {}.",
                paris::french(paris::date(every.at)),
                words(every.verdict)
            )
            .into(),
        );
    }
    if is_empty && !found.is_readable {
        paragraphs.push(
            format!(
                "Un montant de {year} est illisible, ou les lignes sont trop nombreuses : les mois qui contiennent à la fois \
                 des montants saisis et des montants importés ne peuvent pas être affichés. Corrigez ces enregistrements \
                 dans Comptalyze, puis rouvrez ce lien."
            )
            .into(),
        );
    } else if is_empty {
        paragraphs.push(
            format!(
                "Aucun mois de {year} ne contient à la fois des montants saisis et des montants importés."
            )
            .into(),
        );
    } else {
        let (months, contain) = if found.months.len() == 1 {
            ("le", "ci-dessous contient")
        } else {
            ("les", "ci-dessous contiennent")
        };
        paragraphs.push(
            format!(
                "En {year}, {months} mois {contain} à la fois des montants que vous avez saisis et des montants \
                 importés de Stripe ou de Shopify."
            )
            .into(),
        );
        if said.is_none() && !has_answer {
            paragraphs.push(
                "Si ce sont des encaissements distincts, les deux comptent. Si votre saisie reprend ce qui est \
                 importé, un seul des deux montants compte : le plus élevé."
                    .into(),
            );
        }
    }
    let page = Page {
        title: &title,
        paragraphs,
        months: found.months.iter().map(MonthLine::new).collect(),
        has_form: !is_empty || has_answer,
        has_answer,
        app_url: app_url(config),
    };
    Answer::page(200, page.render().unwrap_or_default())
}

fn not_understood(config: &Config) -> Answer {
    page(
        config,
        400,
        "Cette réponse n’est pas complète",
        &["Rien n’a été changé. Rouvrez le lien depuis le courriel et choisissez une réponse.".into()],
        None,
    )
}

impl MonthLine {
    fn new(found: &MixedMonth) -> Self {
        let euros = |cents| MinorAmount::new(cents, Currency::EUR).to_string();
        Self {
            key: found.month.to_string(),
            name: paris_month(found.month),
            typed: euros(found.typed),
            imported: euros(found.imported),
            answer: found.verdict.map(|verdict| match (found.is_own, verdict) {
                (true, BooksVerdict::Distinct) => "Votre réponse pour ce mois : les deux comptent.",
                (true, BooksVerdict::Same) => "Votre réponse pour ce mois : seul le plus élevé compte.",
                (false, BooksVerdict::Distinct) => "Les deux comptent.",
                (false, BooksVerdict::Same) => "Seul le plus élevé compte.",
            }),
        }
    }
}

fn words(verdict: BooksVerdict) -> &'static str {
    match verdict {
        BooksVerdict::Distinct => "ce sont des encaissements distincts",
        BooksVerdict::Same => "ce sont les mêmes encaissements",
    }
}

/// Writes "novembre 2026", with the year bound to its month.
fn paris_month(month: Month) -> String {
    month.french().replacen(' ', "\u{a0}", 1)
}
