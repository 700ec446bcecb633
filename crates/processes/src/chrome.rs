//! Pictures of pages and a hand on their keyboard, by a headless Chromium that we speak to through a pipe.
//!
//! Its command line alone would not do: it takes no window narrower than 500 px, cuts pages at the window's height,
//! and has no switch that answers `prefers-color-scheme`. The `DevTools` protocol has all three.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const ANSWER_DEADLINE: Duration = Duration::from_mins(1);

const SWITCHES: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
];

/// Chromium reads from descriptor 3 and writes to 4: ours are its standard input and output.
const PIPES: &str = r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#;

/// Returns the browser of this machine: the one that `CHROME` names, or one on the `PATH`.
pub fn find() -> Option<PathBuf> {
    if let Some(named) = env::var_os("CHROME") {
        return Some(named.into());
    }
    let path = env::var_os("PATH")?;
    let folders: Vec<_> = env::split_paths(&path).collect();
    NAMES
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|file| file.is_file())
}

/// Says which answer `prefers-color-scheme` gets.
#[derive(Clone, Copy, Debug)]
pub enum Scheme {
    Light,
    Dark,
}

impl Scheme {
    pub const ALL: [Self; 2] = [Self::Light, Self::Dark];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }
}

/// Represents a page as it was shown.
#[derive(Debug)]
pub struct Picture {
    pub png: Vec<u8>,
    /// Is the width of the content, which may be wider than the window.
    pub width: u32,
}

/// Represents a running browser with one page: everything blocks. It is gone when dropped; it also
/// goes by itself when our end of the pipe closes.
pub struct Chrome {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    session: Option<String>,
    sent: u64,
    /// Holds what pages have complained about: exceptions, errors on the console, refused
    /// resources.
    complaints: Vec<String>,
    /// Says whether a page was loaded since the last thing that asks for one.
    has_loaded: bool,
    /// Comes after the child, which writes there until it is gone.
    _profile: TempDir,
}

impl Chrome {
    /// Starts that program.
    pub fn start(program: &Path) -> Result<Self> {
        let profile = TempDir::with_prefix("comptalyze-chrome-")?;
        let mut child = Command::new("/bin/sh")
            .args(["-c", PIPES])
            .arg(program)
            .args(SWITCHES)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a shell")?;
        let (to, output) = child.stdin.take().zip(child.stdout.take()).context("no pipes")?;
        let (sender, from) = mpsc::channel();
        thread::spawn(move || {
            // Messages end with a zero byte. The thread ends with the browser.
            for message in BufReader::new(output).split(0).map_while(Result::ok) {
                let Ok(message) = serde_json::from_slice(&message) else { continue };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut chrome = Self {
            child,
            to,
            from,
            session: None,
            sent: 0,
            complaints: Vec::new(),
            has_loaded: false,
            _profile: profile,
        };
        let target = chrome.call("Target.createTarget", &json!({ "url": "about:blank" }))?;
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = chrome.call("Target.attachToTarget", &target)?;
        chrome.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            chrome.call(domain, &json!({}))?;
        }
        // As in a window in front: what has the focus is drawn so and gets the keys.
        chrome.call("Emulation.setFocusEmulationEnabled", &json!({ "enabled": true }))?;
        Ok(chrome)
    }

    /// Shows a local file in a window of that width, at its whole height.
    pub fn picture(&mut self, file: &Path, width: u32, scheme: Scheme) -> Result<Picture> {
        self.window(width, scheme)?;
        let address = url::Url::from_file_path(file).map_err(|()| anyhow!("not an absolute path"))?;
        self.visit(address.as_str())?;
        self.shot(width)
    }

    /// From now on pages are shown in a window of that width, to somebody who likes it light or dark.
    pub fn window(&mut self, width: u32, scheme: Scheme) -> Result<()> {
        let window = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", &window)?;
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme.as_str() });
        self.call("Emulation.setEmulatedMedia", &json!({ "features": [feature] }))?;
        Ok(())
    }

    /// Goes to an address and waits until its page is there.
    pub fn visit(&mut self, address: &str) -> Result<()> {
        self.has_loaded = false;
        self.call("Page.navigate", &json!({ "url": address }))?;
        self.loaded()
    }

    /// Waits for the page that something else has asked for.
    pub fn loaded(&mut self) -> Result<()> {
        if !self.has_loaded {
            self.wait(|message| message["method"] == "Page.loadEventFired")?;
        }
        self.has_loaded = false;
        Ok(())
    }

    /// Takes a picture of the page, at its whole height.
    pub fn shot(&mut self, width: u32) -> Result<Picture> {
        let metrics = self.call("Page.getLayoutMetrics", &json!({}))?;
        let size = |name: &str| metrics["cssContentSize"][name].as_f64().context("a page without a size");
        let clip = json!({ "x": 0, "y": 0, "width": width, "height": size("height")?, "scale": 1 });
        let options = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let shot = self.call("Page.captureScreenshot", &options)?;
        let png = STANDARD.decode(shot["data"].as_str().context("no picture")?)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a width in pixels")]
        let width = size("width")?.ceil() as u32;
        Ok(Picture { png, width })
    }

    /// Returns the value of an expression in the page. Works where the page itself may run no script.
    pub fn eval(&mut self, expression: &str) -> Result<Value> {
        let asked = json!({ "expression": expression, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", &asked)?;
        if let Some(exception) = answer.get("exceptionDetails") {
            bail!("{expression}: {exception}");
        }
        Ok(answer["result"]["value"].take())
    }

    /// Types into what has the focus.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        self.call("Input.insertText", &json!({ "text": text })).map(drop)
    }

    /// Presses a key: `Tab` or `Enter`.
    pub fn press(&mut self, key: &str) -> Result<()> {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            _ => bail!("no such key here: {key}"),
        };
        self.has_loaded = false;
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code });
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", &event)?;
        }
        Ok(())
    }

    /// Returns what pages have complained about so far.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    fn call(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.sent += 1;
        let id = self.sent;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut bytes = serde_json::to_vec(&message)?;
        bytes.push(0);
        self.to.write_all(&bytes).with_context(|| format!("{method}: the browser is gone"))?;
        let mut answer = self.wait(|message| message["id"] == id).context(method.to_owned())?;
        if let Some(error) = answer.get("error") {
            bail!("{method}: {error}");
        }
        Ok(answer["result"].take())
    }

    /// Returns the next message that is wanted; of the others, complaints are kept.
    fn wait(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        loop {
            let message = self.from.recv_timeout(ANSWER_DEADLINE).context("the browser does not answer")?;
            let params = &message["params"];
            match message["method"].as_str() {
                Some("Page.loadEventFired") => self.has_loaded = true,
                Some("Runtime.exceptionThrown") => self.complaints.push(params.to_string()),
                Some("Runtime.consoleAPICalled") if params["type"] == "error" => {
                    self.complaints.push(params.to_string());
                }
                Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                    self.complaints.push(params["entry"].to_string());
                }
                _ => {}
            }
            if wanted(&message) {
                return Ok(message);
            }
        }
    }
}

impl Drop for Chrome {
    fn drop(&mut self) {
        let asked = self.call("Browser.close", &json!({}));
        if asked.is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
