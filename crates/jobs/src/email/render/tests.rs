//! Tests what holds for every mail, and keeps a picture of each in words.

use crate::{
    email::{
        ActivityTotal, ActivityTurnover, AlertRemarks, Assumed, BooksVerdict, Definitive, Facts,
        IncompleteMonth, MonthTwice, SourceTotal, Uncounted, UnreadSource,
        render::{Branding, Links, Promo, Rendered, render},
        samples::{HOSTILE, StoryPage, branding, mails, samples, story},
    },
    mail_kind::MailKind,
    schedule::Month,
    urssaf::{ActivitySum, TaxProfile},
};

const UNSUBSCRIBE: &str = "https://jobs.example/api/unsubscribe?a=1&b=2";
const CONFIRM: &str = "https://jobs.example/api/confirm?a=1&b=2";
const LINKS: Links = Links { unsubscribe: Some(UNSUBSCRIBE), confirm: Some(CONFIRM) };

fn rendered(facts: &Facts) -> Rendered {
    render(facts, &branding(true), LINKS).unwrap()
}

fn every_sample() -> impl Iterator<Item = (&'static str, Facts, Rendered)> {
    samples().into_iter().map(|(name, facts)| {
        let mail = rendered(&facts);
        (name, facts, mail)
    })
}

/// Facts of each kind in which every text is `text`.
fn facts_with(text: &str) -> Vec<Facts> {
    let (text, month) = (text.to_owned(), Month::new(2026, 11).unwrap());
    let first_name = Some(text.clone());
    vec![
        Facts::MarketingDay3 { first_name: first_name.clone() },
        Facts::MonthlyReminder {
            first_name: first_name.clone(),
            month,
            recorded: 1,
            entries: 1,
            books: Some(vec![ActivityTurnover { activity: text.clone(), typed: 1, imported: 1, quarter: 2 }]),
            profile: TaxProfile::default(),
            mixed: vec![MonthTwice { month, typed: 1, imported: 1 }],
            verdict: None,
            definitive: None,
            uncounted: vec![text.clone()],
            today: None,
            incomplete: vec![IncompleteMonth {
                month,
                unread: vec![UnreadSource {
                    source: text.clone(),
                    since: None,
                    wholly: true,
                    is_former: false,
                    is_disconnected: false,
                }],
                maybe_twice: 0,
                passed_on: 0,
                partial: false,
            }],
            assumed: vec![Assumed { provider: text.clone(), activity: text.clone() }],
            retracted: Vec::new(),
        },
        Facts::DefinitiveMonth {
            first_name: first_name.clone(),
            month,
            definitive: Definitive { mailed: 1, mailed_at: None, provisional: true, total: 2 },
            incomplete: Vec::new(),
            uncounted: vec![text.clone()],
        },
        Facts::MonthlyRecap {
            first_name: first_name.clone(),
            month,
            total: 1,
            sources: vec![SourceTotal { source: text.clone(), gross: 1, refunds: 0 }],
            provisional_at: None,
            typed: None,
            uncounted: vec![text.clone()],
            unread: vec![text.clone(), format!("{text} ")],
            not_theirs: vec![text.clone()],
            ended: vec![UnreadSource {
                source: text.clone(),
                since: None,
                wholly: true,
                is_former: true,
                is_disconnected: false,
            }],
            partial: false,
            maybe_twice: 1,
            passed_on: 1,
            year: Some(vec![ActivitySum { activity: text.clone(), typed: 1, imported: 1 }]),
            created: None,
            contradiction: None,
            mixed: Vec::new(),
            verdict: Some(BooksVerdict::Same),
            activities: vec![ActivityTotal { activity: text.clone(), total: 1 }],
            ahead: None,
            empty: Vec::new(),
            assumed: vec![Assumed { provider: text.clone(), activity: text.clone() }],
            retracted: Vec::new(),
        },
        Facts::ThresholdAlert {
            first_name,
            year: 2026,
            crossings: Vec::new(),
            unknown_activities: vec![text.clone()],
            state: None,
            as_of: None,
            remarks: AlertRemarks {
                uncounted: vec![Uncounted { currency: text.clone(), amount: 1 }],
                assumed: vec![Assumed { provider: text.clone(), activity: text }],
                ..AlertRemarks::default()
            },
            consequences: Vec::new(),
            retracted: Vec::new(),
        },
    ]
}

/// Returns the words of an HTML part.
fn words(html: &str) -> String {
    let body = html.split_once("</style>").unwrap().1;
    body.split('<').filter_map(|piece| piece.split_once('>')).map(|(_, words)| words).collect()
}

#[test]
fn what_people_read() {
    for (name, mail) in mails().unwrap() {
        insta::assert_snapshot!(format!("{name}.html"), mail.html);
        insta::assert_snapshot!(format!("{name}.txt"), format!("{}\n\n{}", mail.subject, mail.text));
    }
}

/// What a year of mails tells in order, by their subjects.
#[test]
fn a_year_of_mails() {
    let pages = story().unwrap();
    assert!(pages.windows(2).all(|pair| pair[0].day <= pair[1].day));
    let lines = pages.iter().map(|page| match &page.mail {
        Some(mail) => format!("{}  {}", page.day, mail.subject),
        None => format!("{}  ({})", page.day, page.event),
    });
    insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"));
}

/// The recaps after 27 October and after 12 November, the days on which the thresholds of VAT are passed, say so. What was
/// typed by mistake in September was corrected before its recap.
#[test]
fn a_recap_says_that_vat_is_due() {
    let recaps = story().unwrap().into_iter().filter(|page| page.event == "Le dernier jour du mois.");
    let said = |page: StoryPage| {
        let mail = page.mail.unwrap();
        let due = ["elle l’est à partir du 1er janvier 2027", "elle l’est depuis le jour de ce dépassement"];
        let found = [words(&mail.html), mail.text].map(|part| {
            let part = part.split_whitespace().collect::<Vec<_>>().join(" ");
            due.map(|due| part.contains(due))
        });
        assert_eq!(found[0], found[1], "both parts say the same on {}", page.day);
        (page.day.to_string(), found[0])
    };
    let found: Vec<_> = recaps.map(said).filter(|(_, found)| *found != [false; 2]).collect();
    let expected =
        [("2026-10-31", [true, false]), ("2026-11-30", [false, true]), ("2026-12-31", [false, true])];
    assert_eq!(found, expected.map(|(day, found)| (day.to_owned(), found)));
}

#[test]
fn the_same_facts_give_the_same_bytes() {
    for (name, facts, mail) in every_sample() {
        let frozen = serde_json::to_string(&facts).unwrap();
        assert_eq!(rendered(&serde_json::from_str(&frozen).unwrap()), mail, "{name}");
    }
}

#[test]
fn foreign_text_stays_text() {
    for facts in facts_with(HOSTILE) {
        let mail = rendered(&facts);
        assert!(!mail.html.contains("<img"), "{:?}", facts.kind());
        // A name is left out; the rest is what the reader wrote themselves.
        let is_repeated = facts.kind() != MailKind::MarketingDay3;
        assert_eq!(mail.html.contains("&#60;img"), is_repeated, "{:?}", facts.kind());
        assert!(!mail.html.contains("Bonjour &#60;") && !mail.text.contains("Bonjour <"));
        assert!(!mail.subject.contains("img"));
    }
}

/// A mail program makes a link of a bare domain by itself: none of ours repeats one that a user wrote.
#[test]
fn foreign_text_becomes_no_link() {
    for text in ["prix.example", "https://prix.example/x", "moi@prix.example"] {
        for facts in facts_with(text).into_iter().filter(|facts| facts.kind().is_for_users()) {
            let mail = rendered(&facts);
            for part in [&mail.subject, &mail.html, &mail.text] {
                for link in ["prix.", "://prix", "@prix"] {
                    assert!(!part.contains(link), "{:?}: {text}", facts.kind());
                }
            }
        }
    }
}

#[test]
fn foreign_text_cannot_break_out_of_its_line() {
    let forged = "a\r\n\r\nBcc: b\u{2028}c\u{85}d\u{b}e\u{202e}f\0g";
    for facts in facts_with(forged) {
        let (mail, kind) = (rendered(&facts), facts.kind());
        assert!(mail.text.lines().all(|line| !line.starts_with("Bcc")), "{kind:?}");
        for part in [&mail.subject, &mail.html, &mail.text] {
            let control = part.chars().find(|char| char.is_control() && *char != '\n');
            assert_eq!(control, None, "{kind:?}");
            assert!(!part.contains(['\u{2028}', '\u{202e}']), "{kind:?}");
        }
    }
}

#[test]
fn a_subject_is_one_line() {
    for (name, _, mail) in every_sample() {
        assert!(!mail.subject.contains(char::is_control), "{name}");
        assert!((10..=90).contains(&mail.subject.chars().count()), "{name}: {}", mail.subject);
    }
}

#[test]
fn nothing_is_fetched_and_every_link_is_known() {
    let app = branding(true).app_url;
    let fetches = ["<img", "<link", "<script", "<iframe", "<form", "src=", "url(", "@import", "background="];
    for (name, _, mail) in every_sample() {
        // What stands outside of tags is text.
        let tags: Vec<_> =
            mail.html.split_inclusive('>').map(|piece| &piece[piece.find('<').unwrap_or(0)..]).collect();
        let tags = tags.concat();
        for fetch in fetches {
            assert!(!tags.contains(fetch), "{name}: {fetch}");
        }
        for address in mail.html.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            let ours = [UNSUBSCRIBE, CONFIRM].map(|link| link.replace('&', "&#38;"));
            let status = address == "https://jobs.comptalyze.example/api/status" && name == "operator-digest";
            let urssaf = address == "https://www.autoentrepreneur.urssaf.fr"
                && ["reminder", "definitive"].iter().any(|kind| name.starts_with(kind));
            assert!(
                ours.iter().any(|link| link == address) || address.starts_with(&app) || status || urssaf,
                "{name}: {address}"
            );
        }
        let links = mail.html.matches("href=\"").count();
        assert_eq!(mail.html.matches("http").count(), links, "{name}: http outside of links");
    }
}

#[test]
fn each_kind_leads_to_its_page() {
    for (name, facts, mail) in every_sample() {
        let page = match facts.kind() {
            MailKind::MarketingDay3 => "/pricing",
            MailKind::MonthlyReminder | MailKind::MonthlyRecap | MailKind::DefinitiveMonth => "/dashboard",
            MailKind::ThresholdAlert => "/dashboard/statistiques",
            MailKind::IntegrationTrouble => "/dashboard/compte/integrations",
            MailKind::OperatorDigest => continue, // leads to the deployment, not to the application
        };
        let address = format!("{}{page}", branding(true).app_url);
        assert!(mail.html.contains(&format!("href=\"{address}\"")), "{name}");
        assert!(mail.text.lines().any(|line| line == address), "{name}");
    }
}

#[test]
fn every_mail_can_be_refused_and_says_who_writes() {
    for (name, facts, mail) in every_sample() {
        let alert = !facts.kind().has_unsubscribe_link();
        let operator = facts.kind() == MailKind::OperatorDigest;
        let preferences = format!("{}/dashboard/compte", branding(true).app_url);
        assert_eq!(mail.text.lines().any(|line| line == UNSUBSCRIBE), !alert, "{name}");
        assert_eq!(mail.html.contains("/api/unsubscribe"), !alert, "{name}");
        for part in [&mail.html, &mail.text] {
            assert_eq!(part.contains(&preferences), !operator, "{name}");
            assert!(part.contains("Vous recevez"), "{name}");
            assert!(branding(true).sender_identity.lines().all(|line| part.contains(line)), "{name}");
        }
    }
}

#[test]
fn without_an_address_nothing_is_offered_that_does_not_work() {
    for (name, facts) in samples() {
        let mail = render(&facts, &branding(true), Links::default()).unwrap();
        for part in [&mail.text, &mail.html] {
            assert!(!part.contains("Ne plus recevoir") && !part.contains("Dire si ce sont"), "{name}");
        }
    }
}

#[test]
fn service_mails_sell_nothing() {
    for (name, facts, mail) in every_sample() {
        if facts.kind() == MailKind::MarketingDay3 {
            assert!(mail.text.contains("BIENVENUE20") && mail.html.contains("BIENVENUE20"), "{name}");
            continue;
        }
        for part in [words(&mail.html), mail.text] {
            let part = part.to_lowercase();
            for word in [
                "premium", "formule", "tarif", "offre", "abonne", "promo", "remise", "code", "pricing",
                "gratuit",
            ] {
                assert!(!part.contains(word), "{name}: {word}");
            }
        }
    }
}

/// Alerts, recaps and imports go to everybody: only what a formula adds is offered.
#[test]
fn the_offer_sells_nothing_that_a_free_account_has() {
    let mail = rendered(&Facts::MarketingDay3 { first_name: None });
    for part in [words(&mail.html), mail.text, mail.subject] {
        let part = part.to_lowercase();
        for free in ["stripe", "shopify", "import", "récapitulatif", "alerte"] {
            assert!(!part.contains(free), "{free}");
        }
    }
}

#[test]
fn a_code_is_shown_only_where_there_is_one() {
    let facts = Facts::MarketingDay3 { first_name: None };
    let mail = render(&facts, &branding(false), Links::default()).unwrap();
    assert!(!mail.text.contains("code") && !words(&mail.html).contains("code"));
}

#[test]
fn configured_text_is_escaped_too() {
    let branding = Branding {
        app_url: "https://app.example".to_owned(),
        sender_identity: "A & B <sarl>\nici".to_owned(),
        promo: Some(Promo { code: "<b>\nX".to_owned(), label: "\"1\" & 2".to_owned() }),
    };
    let mail = render(
        &Facts::MarketingDay3 { first_name: None },
        &branding,
        Links { unsubscribe: Some("https://j.example/?a=\"&b"), confirm: None },
    )
    .unwrap();
    assert!(mail.html.contains("A &#38; B &#60;sarl&#62;<br>ici"), "{}", mail.html);
    assert!(mail.html.contains("&#60;b&#62; X") && mail.html.contains("&#34;1&#34; &#38; 2"));
    assert!(mail.html.contains("https://j.example/?a=&#34;&#38;b"));
}

#[test]
fn the_text_part_is_text() {
    for (name, _, mail) in every_sample() {
        let text = mail.text.replace(HOSTILE, "").replace("<b>autre</b>", "");
        assert!(!text.contains(['<', '>', '{', '}']), "{name}");
        assert!(!text.contains("&#") && !text.contains("&nbsp"), "{name}");
        assert!(!text.contains("\n\n\n"), "{name}");
        let longest =
            text.lines().filter(|line| !line.contains("https://")).map(|line| line.chars().count()).max();
        assert!(longest <= Some(72), "{name}: {longest:?}");
    }
}

#[test]
fn punctuation_is_french() {
    for (name, _, mail) in every_sample() {
        for part in [&mail.subject, &words(&mail.html), &mail.text.replace("https:", "https")] {
            let part = part.replace(HOSTILE, "");
            assert!(!part.contains('\''), "{name}: a straight apostrophe");
            let chars: Vec<_> = part.chars().collect();
            for pair in chars.windows(2) {
                let right = match pair {
                    // A character reference ends with a semicolon of its own.
                    [before, ';'] => *before == '\u{202f}' || before.is_ascii_digit(),
                    [before, '?' | '!'] => *before == '\u{202f}' || *before == '<',
                    [before, ':' | '%' | '€' | '»'] => *before == '\u{a0}',
                    ['«', after] => *after == '\u{a0}',
                    _ => true,
                };
                assert!(
                    right
                        || pair[1] == '?'
                            && ["unsubscribe?", "confirm?"].iter().any(|link| part.contains(link)),
                    "{name}: {pair:?}"
                );
            }
        }
    }
}

#[test]
fn html_is_made_for_mail_programs() {
    for (name, _, mail) in every_sample() {
        let html = &mail.html;
        assert!(html.starts_with("<!doctype html>\n<html lang=\"fr\""), "{name}");
        assert!(html.contains("<meta name=\"color-scheme\" content=\"light dark\">"), "{name}");
        assert!(html.contains("@media (prefers-color-scheme:dark)"), "{name}");
        assert_eq!(
            html.matches("<table").count(),
            html.matches("<table role=\"presentation\"").count(),
            "{name}"
        );
        assert_eq!(html.matches("<table").count(), html.matches("</table>").count(), "{name}");
        assert_eq!(html.matches("<td").count(), html.matches("</td>").count(), "{name}");
        assert_eq!(html.matches("<h1").count(), 1, "{name}");
        // Gmail cuts at 102 kB.
        assert!(html.len() < 60_000, "{name}: {}", html.len());
    }
}

fn sample(name: &str) -> Facts {
    samples().into_iter().find(|(other, _)| *other == name).unwrap().1
}

/// Returns both parts of a mail, on one line with plain spaces.
fn parts(facts: &Facts) -> [String; 2] {
    let mail = rendered(facts);
    [words(&mail.html), mail.text].map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Nothing but an activity that was sold is declared as more than 0 €, and nothing else as 0 €.
#[test]
fn each_activity_is_declared_by_itself() {
    for part in parts(&sample("reminder-negative-activity")) {
        assert!(part.contains("Ventes de marchandises : 0 € et Prestations de services : 300 €"), "{part}");
        assert!(!part.contains("déclarez 0 €"), "{part}");
    }
    for part in parts(&sample("recap-negative-activity")) {
        assert!(part.contains("Prestations de services : 300 €") && !part.contains("déclarez 0 €"), "{part}");
    }
    for part in parts(&sample("definitive-negative")) {
        assert!(
            part.contains("déclarez 0 € pour une activité dont le montant du mois est négatif"),
            "{part}"
        );
        assert!(part.contains("la somme du trimestre qui se déclare"), "{part}");
        assert!(!part.contains("C’est le total définitif qui se déclare"), "{part}");
    }
}

#[test]
fn a_month_that_is_not_over_has_nothing_to_declare_for_the_moment() {
    let mut facts = sample("recap-nothing");
    assert!(parts(&facts).iter().all(|part| part.contains("0 € à déclarer pour ce mois")));
    if let Facts::MonthlyRecap { provisional_at, .. } = &mut facts {
        *provisional_at = Some("2026-11-30T06:05:00Z".parse().unwrap());
    }
    for part in parts(&facts) {
        assert!(part.contains("0 € à déclarer pour l’instant"), "{part}");
        assert!(part.contains("que rien ne s’y ajoute"), "{part}");
    }
}

/// A typed month of 500 beside refunds of 189,90 has nothing twice.
#[test]
fn a_side_below_zero_is_in_nothing_twice() {
    for answer in [None, Some(BooksVerdict::Same)] {
        let mut facts = sample("recap-negative");
        if let Facts::MonthlyRecap { typed, verdict, .. } = &mut facts {
            (*typed, *verdict) = (Some(50_000), answer);
        }
        for part in parts(&facts) {
            assert!(part.contains("saisi 500,00 € à la main pour ce mois. Les deux comptent."), "{part}");
            assert!(!part.contains("deux fois") && !part.contains("le plus élevé"), "{part}");
        }
    }
}

#[test]
fn a_negative_month_is_nothing_to_declare() {
    let mail = rendered(&sample("recap-negative"));
    for part in [words(&mail.html), mail.text.replace('\n', " ")] {
        assert!(part.contains("-189,90\u{a0}€"));
        assert!(part.contains("Un montant négatif ne se déclare pas"));
    }
}

/// A mail that an older version planned: it has no state.
#[test]
fn an_alert_of_an_older_version_is_still_a_mail() {
    let facts = r#"{"kind": "threshold_alert", "first_name": null, "year": 2026, "unknown_activities": [], "crossings": [
        {"threshold": "vat_increased_services", "step": 100, "turnover": 4200000, "ceiling": 4125000,
         "full_year_ceiling": null, "doubt": null, "consequence": {"is": "vat_at_once"}},
        {"threshold": "micro_services", "step": 80, "turnover": 6700000, "ceiling": 8360000,
         "full_year_ceiling": null, "doubt": null, "consequence": {"is": "approaching"}}]}"#;
    let text = rendered(&serde_json::from_str(facts).unwrap()).text.replace(['\n', '\u{a0}'], " ");
    assert!(text.contains("Vous êtes redevable de la TVA dès la date"), "{text}");
    assert!(text.contains("Le plafond n’est pas dépassé."), "{text}");
}

#[test]
fn a_recap_need_not_have_sources() {
    let facts = Facts::MonthlyRecap {
        first_name: None,
        month: Month::new(2026, 1).unwrap(),
        total: i64::MIN,
        sources: Vec::new(),
        provisional_at: None,
        typed: Some(i64::MAX),
        uncounted: Vec::new(),
        unread: vec!["shopify".to_owned()],
        not_theirs: Vec::new(),
        ended: Vec::new(),
        partial: false,
        maybe_twice: 0,
        passed_on: 0,
        year: None,
        created: None,
        contradiction: None,
        mixed: Vec::new(),
        verdict: None,
        activities: Vec::new(),
        ahead: None,
        empty: Vec::new(),
        assumed: Vec::new(),
        retracted: Vec::new(),
    };
    let mail = rendered(&facts);
    assert!(!mail.text.contains("Par source"));
    assert!(mail.text.contains("Total importé, incomplet"));
}

/// Months of which nothing is recorded are named in a year of which nothing is.
#[test]
fn empty_months_are_named_in_an_empty_year() {
    let facts: Facts = serde_json::from_value(serde_json::json!({
        "kind": "monthly_recap", "first_name": null, "month": "2027-02", "total": 0, "sources": [], "provisional_at": null,
        "typed": null, "uncounted": [], "unread": [], "partial": false, "year": [], "empty": ["2027-01"],
    }))
    .unwrap();
    let mail = rendered(&facts);
    for part in [&mail.text, &words(&mail.html)] {
        let part = part.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            part.contains("Rien n’est enregistré pour janvier 2027. Si vous n’avez rien encaissé ce mois-là"),
            "{part}"
        );
    }
}
