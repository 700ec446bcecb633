//! Tests the preview of the mails without pictures: a machine that runs the tests need not have a browser.

use anyhow::Result;
use jobs::email::samples;
use local_stack::mails;

#[test]
fn every_sample_is_written_and_the_index_leads_to_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    mails::write(&folder.path().join("new"), None)?;
    let read = |name: &str| std::fs::read_to_string(folder.path().join("new").join(name));
    let index = read("index.html")?;
    for (name, _) in samples::samples() {
        assert!(read(&format!("{name}.html"))?.starts_with("<!doctype html>"), "{name}");
        assert!(read(&format!("{name}.txt"))?.contains("Vous recevez"), "{name}");
        assert!(index.contains(&format!("\"{name}.html\"")), "{name}");
    }
    assert!(!index.contains("<img"));
    Ok(())
}
