//! Reads what a form or a caller wants done for one user.

use uuid::Uuid;

use crate::{
    entry::status::refused::Refused,
    providers::Provider,
    schedule::{Days, Month, YEARS},
};

/// Says what a form asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) user: Uuid,
    pub(crate) what: What,
    /// The operator has seen what it does.
    pub(crate) is_confirmed: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum What {
    ReadDays(Days),
    ReadMonth(Month),
    LeaveOut { provider: Provider, account: String, out: bool },
    LiftSuppression,
    ResendMails,
}

impl Wanted {
    /// Reads a form; `None`: it asks for something else. An error names the field.
    pub(crate) fn read(value: impl Fn(&str) -> Option<String>) -> Option<Result<Self, Refused>> {
        let action = value("action")?;
        let bad = |message: &str| Refused::new(400, message);
        let what = match action.as_str() {
            "read-again" => read_again(&value),
            "leave-out" | "take-back" => match (value("provider").as_deref(), value("account")) {
                (Some(provider @ ("stripe" | "shopify")), Some(account)) => Ok(What::LeaveOut {
                    provider: if provider == "stripe" { Provider::Stripe } else { Provider::Shopify },
                    account,
                    out: action == "leave-out",
                }),
                _ => Err(bad("Champs provider et account : un compte de l’utilisateur est attendu.")),
            },
            "lift-suppression" => Ok(What::LiftSuppression),
            "resend-mails" => Ok(What::ResendMails),
            _ => return None,
        };
        let user = value("user").and_then(|user| user.parse().ok());
        let is_confirmed = value("confirm").as_deref() == Some("true");
        Some(what.and_then(|what| {
            let user = user.ok_or_else(|| bad("Champ user : un UUID est attendu."))?;
            Ok(Self { user, what, is_confirmed })
        }))
    }

    /// Returns the fields of the form that asks for this.
    pub(super) fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![("user", self.user.to_string())];
        match &self.what {
            What::ReadDays(days) => {
                fields.extend([("action", "read-again".into()), ("days", days.get().to_string())]);
            }
            What::ReadMonth(month) => {
                fields.extend([("action", "read-again".into()), ("month", month.to_string())]);
            }
            What::LeaveOut { provider, account, out } => fields.extend([
                ("action", if *out { "leave-out" } else { "take-back" }.into()),
                ("provider", provider.as_str().into()),
                ("account", account.clone()),
            ]),
            What::LiftSuppression => fields.push(("action", "lift-suppression".into())),
            What::ResendMails => fields.push(("action", "resend-mails".into())),
        }
        fields
    }

    /// Returns the heading of the look, and the button.
    pub(super) fn title(&self) -> String {
        match &self.what {
            What::ReadDays(days) if days.get() == 1 => "Relire le dernier jour".to_owned(),
            What::ReadDays(days) => format!("Relire les {} derniers jours", days.get()),
            What::ReadMonth(month) => format!("Relire {} en entier", month.french()),
            What::LeaveOut { out: true, .. } => "Retirer ce compte des livres".to_owned(),
            What::LeaveOut { .. } => "Remettre ce compte dans les livres".to_owned(),
            What::LiftSuppression => "Écrire de nouveau à cette adresse".to_owned(),
            What::ResendMails => "Renvoyer les courriels en échec".to_owned(),
        }
    }
}

fn read_again(value: &impl Fn(&str) -> Option<String>) -> Result<What, Refused> {
    let given = |name: &str| value(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    match (given("days"), given("month")) {
        (Some(days), None) => days
            .parse()
            .map(What::ReadDays)
            .map_err(|_| Refused::new(400, "Champ days : le nombre de jours va de 1 à 366.")),
        (None, Some(month)) => month
            .parse()
            .ok()
            .filter(|month: &Month| YEARS.contains(&month.year()))
            .map(What::ReadMonth)
            .ok_or_else(|| Refused::new(400, "Champ month : AAAA-MM est attendu, de 1970 à 2099.")),
        _ => Err(Refused::new(400, "Champs days ou month : l’un des deux est attendu.")),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const USER: &str = "5f0c0e52-8a4e-4c4b-9b0c-2f6d1a7e0001";

    #[rstest]
    #[case("1", "Relire le dernier jour")]
    #[case("2", "Relire les 2 derniers jours")]
    fn a_heading_agrees_with_its_number(#[case] days: &str, #[case] title: &str) {
        let what = What::ReadDays(days.parse().unwrap());
        let wanted = Wanted { user: USER.parse().unwrap(), what, is_confirmed: false };
        assert_eq!(wanted.title(), title);
    }

    #[rstest]
    #[case(&[("action", "read-again"), ("days", "30")], Some(Ok(What::ReadDays("30".parse().unwrap()))))]
    #[case(&[("action", "read-again"), ("month", "2026-11"), ("days", " ")], Some(Ok(What::ReadMonth("2026-11".parse().unwrap()))))]
    // As it is pasted.
    #[case(&[("action", "read-again"), ("month", " 2026-11\u{a0}")], Some(Ok(What::ReadMonth("2026-11".parse().unwrap()))))]
    #[case(&[("action", "read-again"), ("days", "367")], Some(Err(400)))]
    #[case(&[("action", "read-again"), ("month", "0001-01")], Some(Err(400)))]
    #[case(&[("action", "read-again"), ("days", "3"), ("month", "2026-11")], Some(Err(400)))]
    #[case(&[("action", "read-again")], Some(Err(400)))]
    #[case(&[("action", "lift-suppression")], Some(Ok(What::LiftSuppression)))]
    #[case(&[("action", "resend-mails")], Some(Ok(What::ResendMails)))]
    #[case(&[("action", "leave-out"), ("provider", "paypal"), ("account", "x")], Some(Err(400)))]
    #[case(
        &[("action", "take-back"), ("provider", "stripe"), ("account", "acct_1")],
        Some(Ok(What::LeaveOut { provider: Provider::Stripe, account: "acct_1".into(), out: false }))
    )]
    #[case(&[("action", "replay")], None)]
    #[case(&[], None)]
    fn a_form_is_read_or_refused(#[case] form: &[(&str, &str)], #[case] expected: Option<Result<What, u16>>) {
        for user in [Some(USER), None] {
            let value = |name: &str| match name {
                "user" => user.map(str::to_owned),
                name => form.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
            };
            let read = Wanted::read(value);
            // What a form asks for is what the form of its confirmation asks for.
            if let Some(Ok(wanted)) = &read {
                let fields = wanted.fields();
                let value = |name: &str| {
                    fields.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
                };
                assert_eq!(Wanted::read(value).and_then(Result::ok).as_ref(), Some(wanted));
            }
            let told = read.map(|read| read.map(|wanted| wanted.what).map_err(|refused| refused.status));
            match (user, &expected) {
                (None, Some(_)) => assert!(matches!(told, Some(Err(400)))),
                _ => assert_eq!(told, expected),
            }
        }
    }
}
