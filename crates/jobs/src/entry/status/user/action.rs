//! What an operator may have done for one user. Each action is looked at first: without `confirm` it answers what it would
//! do, and does nothing.

use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;
use vercel_runtime::AppState;

use super::{
    said::{about, euros},
    wanted::{Wanted, What},
};
use crate::{
    chain,
    entry::{
        answer::Fields,
        log, shape,
        status::refused::{NOBODY, Refused},
    },
    operations::user::actions::{self, LeftOut, Resent, Suppression},
    orchestrator,
    providers::Provider,
    routes::Route,
    schedule::{Days, Month, Task, Via, paris},
    tasks::{Call, Context, TaskOutcome, Trigger},
    words::{self, capitalized, counted},
};

/// Says what an action does or did.
pub(crate) struct Done {
    /// The page's words, after an action that was confirmed.
    pub(crate) notice: &'static str,
    /// What a look says, in sentences.
    pub(crate) said: Vec<String>,
    /// There is something to confirm.
    pub(crate) may_go_on: bool,
    /// The answer to a caller.
    pub(crate) fields: Fields,
}

/// Does it, or says what it would do.
pub(crate) async fn act(context: Context, state: &AppState, wanted: &Wanted) -> Result<Done, Refused> {
    match actions::is_known(&context.supabase, wanted.user, &context.deadline).await {
        Ok(true) => {}
        Ok(false) => return Err(Refused::new(404, NOBODY)),
        Err(error) => return Err(refused(&error)),
    }
    match &wanted.what {
        What::ReadDays(days) => read(context, state, wanted, Some(*days), None).await,
        What::ReadMonth(month) => read(context, state, wanted, None, Some(*month)).await,
        What::LeaveOut { provider, account, out } => {
            leave_out(&context, wanted, (*provider, account, *out)).await
        }
        What::LiftSuppression => lift(&context, wanted).await,
        What::ResendMails => resend(context, state, wanted).await,
    }
}

/// Reads the user's integrations again, through the code of the manual routes.
async fn read(
    context: Context,
    state: &AppState,
    wanted: &Wanted,
    days: Option<Days>,
    month: Option<Month>,
) -> Result<Done, Refused> {
    if month.is_some_and(|month| month > paris::month(context.now)) {
        return Err(Refused::new(400, "Champ month : ce mois n’a pas encore commencé."));
    }
    let task = if month.is_some() { Task::MonthlySync } else { Task::SyncIntegrations };
    let call = Call {
        route: Route::Status.path(),
        via: Via::ManualRoute,
        trigger: Trigger::Manual,
        at: context.now,
        replay: false,
        dry_run: !wanted.is_confirmed,
        user_id: Some(wanted.user),
        force: month.is_some(),
        month,
        days,
    };
    if wanted.is_confirmed {
        let (wanted, fields) = (wanted.clone(), Fields::new().with("message", "Relecture lancée"));
        state.wait_until(async move {
            let outcomes = orchestrator::run(&context, &call, &[task]).await;
            let verdict = shape::verdict(&outcomes);
            let details = json!({"user_id": wanted.user, "action": "read-again", "days": days.map(Days::get), "month": month});
            note(&context, verdict.status, verdict.records, verdict.error.as_deref(), &details).await;
        });
        return Ok(Done { notice: "relecture", said: Vec::new(), may_go_on: false, fields });
    }
    let outcomes = orchestrator::run(&context, &call, &[task]).await;
    let plan = match outcomes.into_iter().next() {
        Some((_, TaskOutcome::DryRun { plan })) => plan,
        Some((_, TaskOutcome::Failed(error))) => {
            return Err(Refused::new(error.http_status(), error.user_message()));
        }
        _ => return Err(Refused::new(500, "Erreur interne ; voir les journaux.")),
    };
    let items = plan["items"].as_u64().unwrap_or_default();
    let what = if month.is_some() { ("mois", "mois") } else { ("intégration", "intégrations") };
    let mut said = vec![format!("{} à lire.", capitalized(&counted(items, what.0, what.1)))];
    if let Some(skipped) = plan["skipped"].as_object().filter(|skipped| !skipped.is_empty()) {
        let all: Vec<String> =
            skipped.iter().map(|(why, count)| format!("{count}\u{a0}× {}", words::reason(why))).collect();
        said.push(format!("Non lues\u{a0}: {}.", all.join(", ")));
    }
    if month.is_some() {
        said.push("Ce mois sera écrit dans ses livres, même s’il précède la connexion\u{a0}: regardez d’abord ce qui y est saisi à la main.".to_owned());
    }
    if let Some(note) = plan["note"].as_str() {
        said.push(format!("{}.", capitalized(note)));
    } else if month.is_some() {
        said.push(
            "Le récapitulatif de ce mois part s’il n’est pas encore parti et s’il est voulu.".to_owned(),
        );
    }
    said.push(
        "Rien ne compte deux fois\u{a0}: un mouvement déjà connu est reconnu par son identifiant.".to_owned(),
    );
    Ok(look(said, items > 0, "read-again", &plan))
}

async fn leave_out(
    context: &Context,
    wanted: &Wanted,
    (provider, account, out): (Provider, &str, bool),
) -> Result<Done, Refused> {
    let asked = actions::leave_account_out(
        &context.supabase,
        wanted.user,
        (provider, account, out),
        !wanted.is_confirmed,
        context.now,
        &context.deadline,
    );
    let Some(found) = asked.await.map_err(|error| refused(&error))? else {
        return Err(Refused::new(
            404,
            "Ce compte n’est pas un compte de cet utilisateur : rien n’a été fait.",
        ));
    };
    let LeftOut { is_out, movements, counted: cents, months } = &found;
    if wanted.is_confirmed {
        let details = json!({
            "user_id": wanted.user, "action": if out { "leave-out" } else { "take-back" }, "provider": provider, "months": months,
        });
        note(context, "success", 0, None, &details).await;
        let fields = Fields::new()
            .with("message", if out { "Compte retiré des livres" } else { "Compte remis dans les livres" });
        let notice = if out { "retire" } else { "remis" };
        return Ok(Done {
            notice,
            said: Vec::new(),
            may_go_on: false,
            fields: fields.with("account", &found),
        });
    }
    let mut said = vec![format!(
        "{} ({account})\u{a0}: {}, {} en tout.",
        provider.name(),
        counted(*movements, "mouvement", "mouvements"),
        euros(*cents)
    )];
    if *is_out == out {
        said.push(
            if out { "Il est déjà retiré des livres." } else { "Il est déjà dans les livres." }.to_owned(),
        );
    } else if out {
        said.push(
            "Ses mouvements restent dans le journal mais ne comptent plus, quoi qu’on lise ensuite."
                .to_owned(),
        );
    } else {
        said.push("Ses mouvements comptent de nouveau, à partir du mois de sa connexion.".to_owned());
    }
    if !months.is_empty() {
        said.push(format!("Mois recalculés\u{a0}: {}.", months.join(", ")));
    }
    said.push("Une ligne que l’utilisateur a modifiée reste telle quelle. Les seuils sont revus avec la synchronisation suivante.".to_owned());
    Ok(look(said, *is_out != out, if out { "leave-out" } else { "take-back" }, &found))
}

async fn lift(context: &Context, wanted: &Wanted) -> Result<Done, Refused> {
    let asked =
        actions::lift_suppression(&context.supabase, wanted.user, !wanted.is_confirmed, &context.deadline);
    let found = asked.await.map_err(|error| refused(&error))?;
    if wanted.is_confirmed {
        let details =
            json!({"user_id": wanted.user, "action": "lift-suppression", "lifted": found.is_some()});
        note(context, "success", 0, None, &details).await;
        let fields = Fields::new().with("message", "Adresse rétablie").with("suppression", &found);
        return Ok(Done { notice: "retablie", said: Vec::new(), may_go_on: false, fields });
    }
    let said = match &found {
        None => vec!["Rien ne retient les courriels à cette adresse de notre côté.".to_owned()],
        Some(Suppression { reason, since }) => {
            let mut said = vec![
                format!("Écartée depuis le {}\u{a0}: {}.", paris::french(paris::date(*since)), reason.said()),
                "À faire aussi chez Resend, d’ici ce n’est pas possible\u{a0}: dans le tableau de bord, Suppressions, retirer cette adresse. Sans cela Resend n’envoie toujours rien.".to_owned(),
            ];
            if reason.code() == "complained" {
                said.push(
                    "C’était une plainte\u{a0}: n’écrivez de nouveau que si la personne le demande."
                        .to_owned(),
                );
            }
            said
        }
    };
    Ok(look(said, found.is_some(), "lift-suppression", &found))
}

async fn resend(context: Context, state: &AppState, wanted: &Wanted) -> Result<Done, Refused> {
    let prices = context.config.prices.as_ref().ok();
    let asked = actions::resend_mails(
        &context.supabase,
        wanted.user,
        prices,
        !wanted.is_confirmed,
        context.now,
        &context.deadline,
    );
    let found = asked.await.map_err(|error| refused(&error))?;
    let Resent { mails, queued } = &found;
    if wanted.is_confirmed {
        let fields =
            Fields::new().with("message", "Renvoi lancé").with("mails", mails).with("queued", queued);
        let notice = if *queued == 0 { "aucun" } else { "renvoi" };
        let details = json!({"user_id": wanted.user, "action": "resend-mails", "queued": queued});
        state.wait_until(async move {
            let drained = chain::drain_queue(&context, Uuid::new_v4(), 0).await;
            let (status, error) = match &drained {
                Ok(drained) if drained.errors == 0 => ("success", None),
                Ok(drained) => ("partial", drained.message.clone()),
                Err(error) => ("error", Some(error.user_message())),
            };
            note(&context, status, 0, error.as_deref(), &details).await;
        });
        return Ok(Done { notice, said: Vec::new(), may_go_on: false, fields });
    }
    let still = mails.iter().filter(|mail| mail.reason.is_none()).count();
    let mut said = vec![match still {
        0 => "Aucun courriel à renvoyer.".to_owned(),
        _ => format!("{} à renvoyer.", counted(still as u64, "courriel", "courriels")),
    }];
    for mail in mails {
        let name = words::one_mail(&mail.kind);
        let of = about(&mail.about);
        said.push(match &mail.reason {
            None => format!("{name}{of}\u{a0}: repart."),
            Some(reason) => format!("{name}{of}\u{a0}: ne repart pas, {}.", reason.said()),
        });
    }
    said.push("Un courriel d’issue inconnue a peut-être été reçu\u{a0}: il n’est jamais renvoyé.".to_owned());
    Ok(look(said, still > 0, "resend-mails", &found))
}

fn look(said: Vec<String>, may_go_on: bool, action: &str, found: &impl Serialize) -> Done {
    let fields = Fields::new()
        .with("message", "Essai : rien n’a été fait ; ajoutez confirm=true")
        .with("action", action)
        .with("would", found)
        .with("said", &said);
    Done { notice: "", said, may_go_on, fields }
}

fn refused(error: &crate::supabase::SupabaseError) -> Refused {
    Refused::new(if error.is_configuration() { 500 } else { 503 }, error.user_message())
}

async fn note(context: &Context, status: &str, records: u64, error: Option<&str>, details: &Value) {
    log::call(context, Route::Status.path(), "manual", status, records, error, details).await;
}
