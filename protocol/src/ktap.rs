//! KTAP lines: version, plan, results, diagnostics.

/// One KTAP line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ktap {
    /// `KTAP version 1`
    Version,
    /// `1..N`: this many results follow.
    Plan(u32),
    /// `ok N name` or `not ok N name`.
    Result {
        /// `ok` rather than `not ok`.
        passed: bool,
        /// Position in the plan, from 1.
        number: u32,
        /// The test's name.
        name: String,
        /// Reason, when the line ends in `# SKIP reason`.
        skipped: Option<String>,
    },
    /// `# text`
    Diagnostic(String),
}

/// What a line turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole KTAP line.
    Ktap(Ktap),
    /// Starts like KTAP and is damaged.
    Torn,
    /// No KTAP line at all.
    NotKtap,
}

/// Reads one line, given without its end of line.
pub fn parse(line: &str) -> Parsed {
    if let Some(version) = line.strip_prefix("KTAP version ") {
        return if version == "1" { Parsed::Ktap(Ktap::Version) } else { Parsed::Torn };
    }
    if let Some(count) = line.strip_prefix("1..") {
        return count.parse().map_or(Parsed::Torn, |count| Parsed::Ktap(Ktap::Plan(count)));
    }
    if let Some(rest) = line.strip_prefix("not ok") {
        return result(false, rest);
    }
    if let Some(rest) = line.strip_prefix("ok") {
        return result(true, rest);
    }
    match line.strip_prefix('#') {
        Some(text) => Parsed::Ktap(Ktap::Diagnostic(text.strip_prefix(' ').unwrap_or(text).to_owned())),
        None => Parsed::NotKtap,
    }
}

/// Reads ` N name [# SKIP reason]`. A word that merely begins with "ok" is not KTAP.
fn result(passed: bool, rest: &str) -> Parsed {
    if !rest.is_empty() && !rest.starts_with(' ') {
        return Parsed::NotKtap;
    }
    let (description, skipped) = match rest.split_once(" # SKIP") {
        Some((description, reason)) => (description, Some(reason.trim().to_owned())),
        None => (rest, None),
    };
    let mut words = description.split_ascii_whitespace();
    let number = words.next().and_then(|word| word.parse().ok());
    // The `-` before the name is optional in KTAP.
    let name = words.next().and_then(|word| if word == "-" { words.next() } else { Some(word) });
    match (number, name, words.next()) {
        (Some(number), Some(name), None) => {
            Parsed::Ktap(Ktap::Result { passed, number, name: name.to_owned(), skipped })
        }
        _ => Parsed::Torn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result_line(passed: bool, number: u32, name: &str, skipped: Option<&str>) -> Parsed {
        Parsed::Ktap(Ktap::Result { passed, number, name: name.to_owned(), skipped: skipped.map(str::to_owned) })
    }

    #[test]
    fn results_with_and_without_a_dash_or_a_skip() {
        assert_eq!(parse("ok 1 storm::disjoint"), result_line(true, 1, "storm::disjoint", None));
        assert_eq!(parse("not ok 2 - a::b"), result_line(false, 2, "a::b", None));
        assert_eq!(parse("ok 3 pcid # SKIP no PCID"), result_line(true, 3, "pcid", Some("no PCID")));
    }

    #[test]
    fn every_proper_prefix_of_a_result_without_its_name_is_torn() {
        for line in ["ok", "ok ", "ok 12", "ok 12 ", "not ok", "not ok 3", "ok x name", "ok 1 two names"] {
            assert_eq!(parse(line), Parsed::Torn, "{line:?}");
        }
    }

    #[test]
    fn plans_versions_and_diagnostics() {
        assert_eq!(parse("KTAP version 1"), Parsed::Ktap(Ktap::Version));
        assert_eq!(parse("KTAP version 2"), Parsed::Torn);
        assert_eq!(parse("1..24"), Parsed::Ktap(Ktap::Plan(24)));
        assert_eq!(parse("1..many"), Parsed::Torn);
        assert_eq!(parse("# left 3 frames"), Parsed::Ktap(Ktap::Diagnostic("left 3 frames".to_owned())));
    }

    #[test]
    fn ordinary_words_are_left_alone() {
        assert_eq!(parse("okay then"), Parsed::NotKtap);
        assert_eq!(parse("nothing"), Parsed::NotKtap);
        assert_eq!(parse(""), Parsed::NotKtap);
    }
}
