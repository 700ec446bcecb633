//! The script that the workflow runs, against a server that answers as told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

const SECRET: &str = "s3cret-of-the-test";

/// Answers one request after another with the given (status, body); a status of 0 never answers.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answers: Vec<(u16, &'static str)>) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), answers)
    }

    fn on(listener: TcpListener, answers: Vec<(u16, &'static str)>) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        // Ends with the test process; only silent connections are kept.
        thread::spawn(move || {
            let mut silent = Vec::new();
            for (status, body) in answers {
                let mut stream = listener.accept().unwrap().0;
                let head = read_head(&stream);
                seen.lock().unwrap().push(head);
                assert_eq!(process_arguments_with(SECRET), 0, "the secret is in a process list");
                if status == 0 {
                    silent.push(stream);
                    continue;
                }
                let length = body.len();
                write!(
                    stream,
                    "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                )
                .unwrap();
            }
            thread::park();
        });
        Self { url, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn read_head(stream: &TcpStream) -> String {
    let lines = BufReader::new(stream).lines().map(Result::unwrap);
    lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

/// Returns how many processes have this text among their arguments. Nothing to look at but on
/// Linux.
fn process_arguments_with(text: &str) -> usize {
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    processes
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .filter(|arguments| String::from_utf8_lossy(arguments).contains(text))
        .count()
}

fn script(url: &str, route: &str, parameters: &[(&str, &str)]) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.github/scripts/trigger.sh"));
    for name in ["FORCE", "DRY_RUN", "MONTH", "DAYS", "USER_ID", "GITHUB_STEP_SUMMARY"] {
        command.env_remove(name);
    }
    command
        .arg(route)
        .env("JOBS_BASE_URL", url)
        .env("CRON_SECRET", SECRET)
        .env("TRIGGER_PAUSE_SECONDS", "0")
        .env("no_proxy", "127.0.0.1")
        .envs(parameters.iter().copied())
        .stdin(Stdio::null());
    command
}

/// Returns a name for a file that is not there yet.
fn tempfile() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("summary-{}.md", uuid::Uuid::new_v4()))
}

fn run(url: &str, route: &str, parameters: &[(&str, &str)]) -> (i32, String) {
    let Output { status, stdout, stderr } = script(url, route, parameters).output().expect("bash");
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(!text.contains(SECRET), "the secret was printed:\n{text}");
    (status.code().expect("an exit code"), text)
}

const FINE: &str =
    r#"{"message":"Vérification terminée : 5 alertes envoyées, 0 erreurs","sent":5,"errors":0}"#;

#[test]
fn a_success_is_posted_once_with_the_secret_in_the_header() {
    let server = Server::start(vec![(200, FINE)]);
    let (code, text) = run(&server.url, "check-thresholds", &[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("5 alertes envoyées"), "{text}");

    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    let head = &requests[0];
    assert!(head.starts_with("POST /api/manual/check-thresholds HTTP/1.1\n"), "{head}");
    assert!(head.contains(&format!("Authorization: Bearer {SECRET}")), "{head}");
}

#[test]
fn parameters_travel_in_the_query() {
    let server = Server::start(vec![(200, FINE), (200, FINE)]);
    let parameters = [
        ("FORCE", "true"),
        ("DRY_RUN", "true"),
        ("MONTH", "2026-11"),
        ("USER_ID", "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"),
    ];
    // A trailing slash of the variable does no harm.
    assert_eq!(run(&format!("{}/", server.url), "monthly-sync", &parameters).0, 0);
    assert_eq!(run(&server.url, "sync-integrations", &[("FORCE", "false"), ("DAYS", "7")]).0, 0);
    let requests = server.requests();
    let target = |request: &str| request.split(' ').nth(1).unwrap().to_owned();
    assert_eq!(
        target(&requests[0]),
        "/api/manual/monthly-sync?force=true&dry_run=true&month=2026-11\
         &user_id=6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
    );
    assert_eq!(target(&requests[1]), "/api/manual/sync-integrations?days=7");
}

#[test]
fn a_failure_of_the_route_is_a_failure_and_never_repeated() {
    for (status, body, told) in [
        (200, r#"{"message":"Vérification terminée","sent":4,"errors":1}"#, "compte des erreurs"),
        (200, r#"{"results":{"syncIntegrations":{"synced":3,"errors":2}}}"#, "compte des erreurs"),
        (401, r#"{"error":"Secret absent ou faux"}"#, "HTTP 401"),
        (400, r#"{"error":"Paramètre inconnu"}"#, "HTTP 400"),
        (500, r#"{"error":"Erreur interne","errors":1}"#, "HTTP 500"),
        (504, "FUNCTION_INVOCATION_TIMEOUT", "HTTP 504"),
        (308, "", "HTTP 308"),
        (200, "<!DOCTYPE html>", "pas du JSON"),
        (200, "", "pas du JSON"),
    ] {
        let server = Server::start(vec![(status, body)]);
        let (code, text) = run(&server.url, "check-thresholds", &[]);
        assert_eq!(code, 1, "{status} {body}: {text}");
        assert!(text.contains(told), "{status} {body}: {text}");
        assert_eq!(server.requests().len(), 1);
    }
}

/// Anybody may read the repository's log and summary, so they say no id and no turnover.
#[test]
fn nobodys_id_and_turnover_are_printed() {
    const USER: &str = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
    let answers = [
        (
            "monthly-sync",
            200,
            r#"{"message":"Sync mensuel terminé","month":"octobre 2026","totalUsers":2,"resultsTotal":2,"errors":0,
               "results":[{"userId":"6f9619ff-8b86-4d01-b42d-00cf4fc964ff","totalCA":4242.5,"details":[]},{}],
               "alerts":{"sent":1,"errors":0}}"#,
            vec![
                "Sync mensuel terminé",
                "octobre 2026",
                r#""totalUsers": 2"#,
                r#""results": 2"#,
                r#""sent": 1"#,
            ],
        ),
        (
            "sync-integrations",
            200,
            r#"{"message":"Synchronisation terminée","totalSynced":3,"errors":1,
               "problems":[{"code":"reconnect","message":"6f9619ff-8b86-4d01-b42d-00cf4fc964ff: 4242.5","count":2},
               {"code":"6f9619ff-8b86-4d01-b42d-00cf4fc964ff"}]}"#,
            vec![r#""totalSynced": 3"#, r#""reconnect": 2"#],
        ),
        (
            "monthly-sync",
            404,
            r#"{"error":"Aucun utilisateur 6f9619ff-8b86-4d01-b42d-00cf4fc964ff"}"#,
            vec!["Aucun"],
        ),
        (
            "monthly-sync",
            200,
            r#"{"results":[{"userId":"6f9619ff-8b86-4d01-b42d-00cf4fc964ff","totalCA":4242.5"#,
            vec!["illisible"],
        ),
        ("monthly-sync", 200, r#"["6f9619ff-8b86-4d01-b42d-00cf4fc964ff",4242.5]"#, vec!["illisible"]),
    ];
    for (route, status, body, shown) in answers {
        let summary = tempfile();
        let server = Server::start(vec![(status, body)]);
        let (_, text) = run(&server.url, route, &[("GITHUB_STEP_SUMMARY", summary.to_str().unwrap())]);
        let written = std::fs::read_to_string(&summary).unwrap();
        std::fs::remove_file(&summary).unwrap();
        for text in [&text, &written] {
            assert!(!text.contains(USER) && !text.contains("4242"), "{text}");
            for shown in &shown {
                assert!(text.contains(shown), "{shown} is missing: {text}");
            }
        }
    }
}

#[test]
fn an_answer_cannot_speak_to_the_workflow() {
    let server = Server::start(vec![(502, "oops\n::add-mask::x\n::error::y\n")]);
    let (_, text) = run(&server.url, "check-thresholds", &[]);
    assert!(!text.lines().any(|line| line.trim_start().starts_with("::add-mask::")), "{text}");
}

#[test]
fn a_503_is_tried_again_and_given_up_in_the_end() {
    let busy = (503, r#"{"error":"Base de données injoignable"}"#);
    let server = Server::start(vec![busy, busy, (200, FINE)]);
    let (code, text) = run(&server.url, "sync-integrations", &[]);
    assert_eq!((code, server.requests().len()), (0, 3), "{text}");

    let server = Server::start(vec![busy, busy]);
    let (code, text) = run(&server.url, "sync-integrations", &[("TRIGGER_ATTEMPTS", "2")]);
    assert_eq!((code, server.requests().len()), (1, 2), "{text}");
    assert!(text.contains("injoignable") && text.contains("HTTP 503"), "{text}");
}

#[test]
fn a_refused_connection_is_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);

    let mut child = script(&format!("http://{address}"), "check-thresholds", &[])
        .env("TRIGGER_ATTEMPTS", "20")
        .env("TRIGGER_PAUSE_SECONDS", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    output.read_line(&mut first).unwrap();
    assert!(first.contains("nouvel essai"), "{first}");

    let server = Server::on(TcpListener::bind(address).unwrap(), vec![(200, FINE)]);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success(), "{rest}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_silent_server_is_not_asked_twice() {
    let server = Server::start(vec![(0, ""), (200, FINE)]);
    let (code, text) = run(&server.url, "sync-integrations", &[("TRIGGER_MAX_SECONDS", "1")]);
    assert_eq!((code, server.requests().len()), (1, 1), "{text}");
    assert!(text.contains("le travail continue peut-être"), "{text}");
}

#[test]
fn the_summary_holds_the_answer() {
    let summary = tempfile();
    let server = Server::start(vec![(200, FINE)]);
    let path = summary.to_str().unwrap();
    let (code, text) = run(&server.url, "check-thresholds", &[("GITHUB_STEP_SUMMARY", path)]);
    assert_eq!(code, 0, "{text}");
    let written = std::fs::read_to_string(&summary).unwrap();
    std::fs::remove_file(&summary).unwrap();
    assert!(written.starts_with("### check-thresholds : terminé\n\n    {\n"), "{written}");
    assert!(written.contains("    \"sent\": 5"), "{written}");
}

#[test]
fn what_is_wrong_before_the_call_is_refused_without_one() {
    let server = Server::start(vec![]);
    let url = server.url.as_str();
    for (url, route, parameter) in [
        (url, "../cron/drain-queue", ("DAYS", "")),
        (url, "", ("DAYS", "")),
        (url, "sync-integrations", ("DAYS", "7&force=true")),
        (url, "sync-integrations", ("USER_ID", "$(id)")),
        (url, "monthly-sync", ("MONTH", "2026-11 ")),
        (url, "check-thresholds", ("CRON_SECRET", "")),
        (url, "check-thresholds", ("CRON_SECRET", "two\nlines")),
        ("", "check-thresholds", ("DAYS", "")),
        ("http://jobs.example", "check-thresholds", ("DAYS", "")),
        ("https://jobs.example/?secret=x", "check-thresholds", ("DAYS", "")),
    ] {
        let (code, text) = run(url, route, &[parameter]);
        assert_eq!(code, 2, "{url} {route} {parameter:?}: {text}");
    }
    assert!(server.requests().is_empty());
}
