//! Keeps text of foreign origin harmless: on its line, and no link. Mail programs make one of a bare domain by themselves, and a mail is sent to
//! whatever address somebody signed up with: a name with a link in it would be an advertisement in our name.

/// Returns a first name that may be repeated in a greeting; `None` where it is none: a link, markup, digits, an address.
/// Whoever is called otherwise than letters can tell is greeted without a name.
pub(super) fn first_name(text: &str) -> Option<String> {
    let name = one_line(text, 40);
    let is_one = name.contains(char::is_alphabetic)
        && name.chars().all(belongs_to_a_name)
        && !name.to_lowercase().contains("www")
        && !name.split(' ').any(|word| word.trim_end_matches('.').contains('.'));
    is_one.then_some(name)
}

/// Writes text of unknown origin as one line of `most` characters at most: no line breaks, no control characters, none
/// of the invisible ones that reorder or hide what stands beside them.
pub(super) fn one_line(text: &str, most: usize) -> String {
    let visible = text.replace(|char: char| char.is_control() || is_invisible(char), " ");
    let line = visible.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(most) {
        Some((cut, _)) => format!("{}…", line[..cut].trim_end()),
        None => line,
    }
}

fn is_invisible(char: char) -> bool {
    matches!(
        char,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

/// Says a text of foreign origin as one line in which no mail program finds a link: `prix[.]example`. It is for what a reader
/// has to recognise as their own.
pub(super) fn unlinked(text: &str, most: usize) -> String {
    let line = one_line(text, usize::MAX);
    let mut said = String::with_capacity(line.len());
    let mut before = ' ';
    for (index, char) in line.char_indices() {
        let after = &line[index + char.len_utf8()..];
        let joins = match char {
            '.' | '\u{3002}' | '\u{ff0e}' | '\u{ff61}' => {
                before.is_alphanumeric() && begins_with_letters(after)
            }
            '@' => true,
            ':' => after.starts_with('/'),
            _ => false,
        };
        if joins {
            said.extend(['[', char, ']']);
        } else {
            said.push(char);
        }
        before = char;
    }
    one_line(&said, most)
}

/// Returns whether two letters come next: no domain ends with one.
fn begins_with_letters(text: &str) -> bool {
    text.chars().take(2).filter(|char| char.is_alphabetic()).count() == 2
}

fn belongs_to_a_name(char: char) -> bool {
    let is_accent = matches!(char, '\u{300}'..='\u{36f}');
    char.is_alphabetic()
        || is_accent
        || matches!(char, ' ' | '.' | '-' | '\u{2010}' | '\u{2011}' | '\'' | '’' | 'ʼ' | '…')
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("Camille", Some("Camille"))]
    #[case("J. P. D’Artagnan-Müller", Some("J. P. D’Artagnan-Müller"))]
    #[case("N'Golo", Some("N'Golo"))]
    #[case("Zoe\u{308}", Some("Zoe\u{308}"))]
    #[case("Ольга", Some("Ольга"))]
    #[case("李", Some("李"))]
    #[case("", None)]
    #[case(" \n", None)]
    #[case("…", None)]
    // What a mail program would make a link of.
    #[case("Gagnez sur prix.example", None)]
    #[case("https://prix.example", None)]
    #[case("a..prix.example", None)]
    #[case("PRIX.EXAMPLE", None)]
    #[case("prix\u{3002}example", None)]
    #[case("prix\u{ff0e}example", None)]
    #[case("prix\u{200b}.example", None)]
    #[case("WWW prix", None)]
    #[case("moi@prix", None)]
    #[case("0899123456", None)]
    // What is no name.
    #[case("<b>Camille</b>", None)]
    #[case("<img src=x onerror=alert(1)>", None)]
    #[case("[Camille](prix)", None)]
    #[case("{{name}}", None)]
    #[case("a\r\nBcc: b", None)]
    fn names(#[case] text: &str, #[case] expected: Option<&str>) {
        assert_eq!(first_name(text).as_deref(), expected);
    }

    #[rstest]
    #[case("Prestation de services", "Prestation de services")]
    #[case("Conseil, S.A.R.L. à 12.50 % etc.", "Conseil, S.A.R.L. à 12.50 % etc.")]
    #[case("prix.example", "prix[.]example")]
    #[case("https://prix.example/a", "https[:]//prix[.]example/a")]
    #[case("moi@prix.example", "moi[@]prix[.]example")]
    #[case("prix\u{3002}example", "prix[\u{3002}]example")]
    #[case("0123456789012", "0123456789…")]
    fn what_is_unlinked_is_still_recognised(#[case] text: &str, #[case] expected: &str) {
        let most = if text.starts_with('0') { 10 } else { 60 };
        assert_eq!(unlinked(text, most), expected);
    }

    #[rstest]
    #[case("  Anne \t Marie\r\n", "Anne Marie")]
    #[case("a\u{2028}b\u{85}c\u{b}d", "a b c d")]
    #[case("a\u{202e}b\u{200b}c", "a b c")]
    #[case("0123456789012", "0123456789…")]
    #[case("ééééééééééé", "éééééééééé…")]
    #[case("012345678 abc", "012345678…")]
    fn lines(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(one_line(text, 10), expected);
    }
}
