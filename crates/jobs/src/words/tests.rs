//! Checks that every stored name has its French words, and that no name is shown as it is stored.

use std::{collections::BTreeSet, fs, path::Path};

use rstest::rstest;

use super::*;

#[rstest]
#[case(0, "0~envoyé")]
#[case(1, "1~envoyé")]
#[case(2, "2~envoyés")]
fn numbers_agree(#[case] n: u64, #[case] expected: &str) {
    assert_eq!(counted(n, "envoyé", "envoyés"), expected.replace('~', "\u{a0}"));
}

#[test]
fn no_stored_name_is_shown() {
    let unknown = "later_than_us";
    for words in [task(unknown), lane(unknown), mail_kind(unknown), reason(unknown)] {
        assert!(words.starts_with("autre"), "{words}");
    }
    assert_eq!(reason("Resend a refusé ce courriel : no"), "Resend a refusé ce courriel : no");
    for lane in Lane::ALL {
        assert_eq!(Lane::from_stored(lane.as_str()), Some(lane));
    }
    for kind in MailKind::ALL {
        assert_eq!(MailKind::from_stored(kind.as_str()), Some(kind));
        assert!(kind.lane().is_mail());
    }
}

/// These names stay between the database and the code, or are shown as the heading of a number.
const NOT_SHOWN: [&str; 17] = [
    "bareme",
    "charge_failed",
    "charge_pending",
    "complete",
    "done",
    "free",
    "held",
    "lost",
    "never_paid",
    "provisional",
    "queued",
    "sent",
    "settled",
    "succeeded",
    "superseded",
    "suspended",
    "vl",
];

/// Every name that the database's one state chooses between (`case … then '…'`) or allows in a
/// column that is shown (`check (status in (…))`) has words, or is listed as not shown. The
/// kinds of mail are one list of the database, which `promises/catalogue.rs` compares with
/// ours.
#[test]
fn every_stored_name_has_words() {
    let mut found = BTreeSet::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../supabase/schemas")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "sql") {
                found.extend(names_in(&fs::read_to_string(path).unwrap()));
            }
        }
    }
    for looked_for in ["metadata_says_paid", "refused_by_user", "alerts", "running", "expired", "failing"] {
        assert!(found.contains(looked_for), "the scan misses {looked_for}");
    }
    let unexplained: Vec<_> =
        found.iter().filter(|name| !NOT_SHOWN.contains(&name.as_str()) && !has_words(name)).collect();
    assert!(unexplained.is_empty(), "no words for {unexplained:?}");
}

fn has_words(stored: &str) -> bool {
    stored.parse::<Task>().is_ok()
        || Lane::from_stored(stored).is_some()
        || MailKind::from_stored(stored).is_some()
        || reason(stored) != OTHER_REASON
        || run_status(stored) != UNKNOWN_STATE
        || integration_state(stored, 1) != UNKNOWN_STATE
}

fn names_in(sql: &str) -> Vec<String> {
    let code: Vec<&str> = sql.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let pieces: Vec<&str> = code.split('\'').collect();
    let chosen = pieces.chunks_exact(2).filter_map(|piece| {
        let before = piece[0].trim_end();
        (before.ends_with("then") || before.ends_with("else")).then_some(piece[1])
    });
    let allowed = ["task", "lane", "kind", "status"].into_iter().flat_map(|column| {
        let start = format!("check ({column} in (");
        let lists = code.split(start.as_str()).skip(1).filter_map(|rest| rest.split(')').next());
        lists.flat_map(|list| list.split('\'').skip(1).step_by(2)).collect::<Vec<_>>()
    });
    chosen.chain(allowed).filter(|name| !name.is_empty() && is_code(name)).map(str::to_owned).collect()
}

#[test]
fn capitals() {
    assert_eq!(
        ["récapitulatifs", "échec", "Stripe", ""].map(capitalized),
        ["Récapitulatifs", "Échec", "Stripe", ""]
    );
}
