//! Puts the last touch on what a template gave: punctuation, blank lines, line lengths.

use super::french::typeset;

/// No line of a text part is longer: what mail programs show without wrapping it themselves.
const WIDTH: usize = 72;

/// Typesets the words, leaving tags and styles alone, and takes out the templates' own indentation.
pub(super) fn html(page: &str) -> String {
    let mut typeset_page = String::with_capacity(page.len());
    let mut rest = page;
    while let Some(open) = rest.find('<') {
        let (words, tag) = rest.split_at(open);
        typeset_page.push_str(&typeset(words));
        // A style sheet has punctuation of its own.
        let end = if tag.starts_with("<style") { "</style>" } else { ">" };
        let (tag, after) = tag.split_at(tag.find(end).map_or(tag.len(), |at| at + end.len()));
        typeset_page.push_str(tag);
        rest = after;
    }
    typeset_page.push_str(&typeset(rest));
    let lines: Vec<_> = typeset_page.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("\n") + "\n"
}

/// Typesets, wraps, and leaves at most one blank line between paragraphs.
pub(super) fn text(page: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in typeset(page).lines() {
        let blank = line.trim().is_empty();
        if !blank {
            wrap(line.trim_end(), &mut lines);
        } else if lines.last().is_some_and(|last| !last.is_empty()) {
            lines.push(String::new());
        }
    }
    lines.join("\n").trim_end().to_owned() + "\n"
}

/// Breaks at plain spaces only. What follows a bullet is indented like its first word.
fn wrap(line: &str, lines: &mut Vec<String>) {
    let words = line.trim_start_matches(' ');
    let indent = line.len() - words.len() + if words.starts_with("- ") { 2 } else { 0 };
    let mut current = " ".repeat(line.len() - words.len());
    let mut length = current.len();
    for (index, word) in words.split(' ').enumerate() {
        let word_length = word.chars().count();
        if index > 0 && length + 1 + word_length > WIDTH {
            lines.push(std::mem::replace(&mut current, " ".repeat(indent)));
            length = indent;
        } else if index > 0 {
            current.push(' ');
            length += 1;
        }
        current.push_str(word);
        length += word_length;
    }
    lines.push(current);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_typeset_and_tags_are_not() {
        let page =
            "<style>a :hover{ color : red }</style>\n\n  <p style=\"color : red\">Oui : &lt;b&gt; !</p>";
        let expected = "<style>a :hover{ color : red }</style>\n<p style=\"color : red\">Oui\u{a0}: &lt;b&gt;\u{202f}!</p>\n";
        assert_eq!(html(page), expected);
    }

    #[test]
    fn text_is_wrapped_and_its_bullets_hang() {
        let long = "mot ".repeat(30);
        let wrapped = text(&format!("\n- {long}\n\n\n\nfin\n\n"));
        assert!(wrapped.lines().all(|line| line.chars().count() <= WIDTH));
        assert!(
            wrapped.starts_with("- mot") && wrapped.contains("\n  mot") && wrapped.ends_with("mot\n\nfin\n")
        );
    }

    #[test]
    fn an_address_is_never_broken() {
        let address = format!("https://app.example/{}", "a".repeat(100));
        assert_eq!(text(&address), format!("{address}\n"));
    }
}
