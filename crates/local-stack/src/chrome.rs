//! Pictures of pages, by a headless Chromium that we speak to through a pipe.
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

/// The browser of this machine: the one that `CHROME` names, or one on the `PATH`.
pub(crate) fn find() -> Option<PathBuf> {
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

/// Which answer `prefers-color-scheme` gets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scheme {
    Light,
    Dark,
}

impl Scheme {
    pub(crate) const ALL: [Self; 2] = [Self::Light, Self::Dark];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }
}

/// A page as it was shown.
pub(crate) struct Picture {
    pub(crate) png: Vec<u8>,
    /// Of the content, which may be wider than the window.
    pub(crate) width: u32,
}

/// A running browser with one page. Gone when dropped; it also goes by itself when our end of the pipe closes.
pub(crate) struct Chrome {
    child: Child,
    to: ChildStdin,
    from: Receiver<Value>,
    session: Option<String>,
    sent: u64,
    /// After the child: it writes there until it is gone.
    _profile: TempDir,
}

impl Chrome {
    pub(crate) fn start(program: &Path) -> Result<Self> {
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
        let mut chrome = Self { child, to, from, session: None, sent: 0, _profile: profile };
        let target = chrome.call("Target.createTarget", &json!({ "url": "about:blank" }))?;
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = chrome.call("Target.attachToTarget", &target)?;
        chrome.session = attached["sessionId"].as_str().map(str::to_owned);
        chrome.call("Page.enable", &json!({}))?;
        Ok(chrome)
    }

    /// Shows a local file in a window of that width, at its whole height.
    pub(crate) fn picture(&mut self, file: &Path, width: u32, scheme: Scheme) -> Result<Picture> {
        let window = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", &window)?;
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme.as_str() });
        self.call("Emulation.setEmulatedMedia", &json!({ "features": [feature] }))?;
        let address = reqwest::Url::from_file_path(file).map_err(|()| anyhow!("not an absolute path"))?;
        self.call("Page.navigate", &json!({ "url": address.as_str() }))?;
        self.wait(|message| message["method"] == "Page.loadEventFired")?;

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

    /// The next message that is wanted; the others are dropped.
    fn wait(&self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        loop {
            let message = self.from.recv_timeout(ANSWER_DEADLINE).context("the browser does not answer")?;
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
